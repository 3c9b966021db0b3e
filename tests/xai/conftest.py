"""Models and truths that several files of tests ask for."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SmallCNN(nn.Module):
    """Two convolutions, each with BatchNorm and an in-place ReLU, and a linear head."""

    def __init__(self, channels: int = 3, classes: int = 5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 6, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.relu(self.bn1(self.conv1(x))), 2)
        x = self.relu(self.bn2(self.conv2(x)))
        return self.fc(x.mean((2, 3)))


@pytest.fixture
def make_cnn() -> Callable[..., SmallCNN]:
    def make(seed: int = 0, **options: int) -> SmallCNN:
        torch.manual_seed(seed)
        model = SmallCNN(**options)
        # Statistics that are not 0 and 1, so that train and eval mode differ.
        for norm in (model.bn1, model.bn2):
            norm.running_mean.normal_(0, 0.2)
            norm.running_var.uniform_(0.5, 2)
        return model.eval()

    return make


@pytest.fixture
def full_graph() -> Callable[..., tuple[Tensor, Tensor]]:
    """Activations and gradients from an ordinary graph of the whole model, by plain hooks."""

    def truth(
        model: nn.Module, layer: nn.Module, images: Tensor, classes: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        kept: list[Tensor] = []

        def keep(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
            kept.append(output)
            return output.clone()

        handle = layer.register_forward_hook(keep)
        with torch.enable_grad():
            logits = model(images.clone().requires_grad_())
        handle.remove()
        chosen = logits.argmax(1) if classes is None else classes
        score = logits.gather(1, chosen[:, None]).sum()
        return kept[-1].detach(), torch.autograd.grad(score, kept[-1])[0]

    return truth
