"""A small network, images and heatmaps without ties, and loops that measure one image at a time."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedgaze.xai import Runner, open_runner

Array = NDArray[np.float64]


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(64, 5),
    )
    nn.init.normal_(made[4].weight)
    return made.eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def heatmaps() -> Tensor:
    return torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def runner(model: nn.Module, images: Tensor) -> Iterator[Runner]:
    with open_runner(model, images, [0, 3, 1]) as made:
        yield made


@pytest.fixture
def says(model: nn.Module) -> Callable[[Array, int], float]:
    """The probability of a class for one image, in NumPy."""

    def probability(image: Array, label: int) -> float:
        with torch.no_grad():
            logits = model(torch.from_numpy(image[None]).float())[0].double().numpy()
        chances = np.exp(logits - logits.max())
        return float(chances[label] / chances.sum())

    return probability
