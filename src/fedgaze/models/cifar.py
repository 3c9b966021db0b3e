"""The residual networks for small images, by whose names trained weights are passed around."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedgaze.errors import FedgazeError
from fedgaze.models.checkpoint import load_checkpoint

__all__ = ["CifarResNet"]


class CifarResNet(nn.Module):
    """The ResNet for CIFAR of He et al. 2016 (arXiv:1512.03385, section 4.2).

    Three stages of 16, 32 and 64 channels at 1, 1/2 and 1/4 of the image's size. A shortcut into a
    stage takes every other pixel and has zeros for the new channels (option A), so it has no
    weights. Layers are called as in akamaster/pytorch_resnet_cifar10, whose weights fit.

    Args:
        depth: 6 n + 2: 20, 32, 44, 56, 110 …
        num_classes: Outputs.
        weights: A file of weights; random ones by default.

    Raises:
        FedgazeError: There is no network of this depth, or the weights do not fit.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, depth: int = 20, num_classes: int = 10, weights: str | None = None) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise FedgazeError(f"depth is {depth}; allowed are 8, 14, 20, 26 … (6 n + 2)")
        # As those weights were trained; no part of the state, which has the weights' names only.
        for name, values in (("mean", (0.485, 0.456, 0.406)), ("std", (0.229, 0.224, 0.225))):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = _stage(blocks, 16, 16)
        self.layer2 = _stage(blocks, 16, 32)
        self.layer3 = _stage(blocks, 32, 64)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
        if weights is not None:
            load_checkpoint(self, Path(weights).expanduser())

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, num_classes)`` of images ``(N, 3, H, W)`` in [0, 1]."""
        x = self.relu(self.bn1(self.conv1((images - self.mean) / self.std)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def _stage(blocks: int, before: int, channels: int) -> nn.Sequential:
    first = _Block(before, channels)
    return nn.Sequential(first, *(_Block(channels, channels) for _ in range(blocks - 1)))


class _Block(nn.Module):
    """Two convolutions and what they are added to."""

    def __init__(self, before: int, channels: int) -> None:
        super().__init__()
        self.stride = channels // before
        self.conv1 = nn.Conv2d(before, channels, 3, self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        changed = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            around = (changed.shape[1] - x.shape[1]) // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, around, around))
        y: Tensor = self.relu2(changed + x)
        return y
