"""Layers by depth: convolutions where there are some, blocks where there are none."""

import pytest
import torch
from torch import Tensor, nn

from fedgaze.errors import FedgazeError
from fedgaze.models import layers_by_depth, open_classifier

IMAGE = torch.zeros(1, 3, 64, 64)


def test_convolutions_in_the_order_in_which_they_run() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.late = nn.Conv2d(4, 4, 3)
            self.unused = nn.Conv2d(4, 4, 3)
            self.middling = nn.Conv2d(4, 4, 3)
            self.early = nn.Conv2d(3, 4, 3)

        def forward(self, images: Tensor) -> Tensor:
            found: Tensor = self.late(self.middling(self.early(images))).mean((2, 3))
            return found

    wanted = ["last", "first", "middle", "unused", "auto"]
    assert layers_by_depth(Backwards(), wanted, IMAGE) == {
        "last": "late",
        "first": "early",
        "middle": "middling",
        "unused": "unused",
        "auto": "auto",
    }


@pytest.mark.parametrize(
    ("name", "side", "expected"),
    [
        (
            "vit_b_16",
            224,
            [
                "encoder.layers.encoder_layer_0",
                "encoder.layers.encoder_layer_6",
                "encoder.layers.encoder_layer_11.ln_1",
            ],
        ),
        ("timm:vit_tiny_patch16_224", 224, ["blocks.0", "blocks.6", "blocks.11.norm1"]),
    ],
)
def test_blocks_of_transformers(name: str, side: int, expected: list[str]) -> None:
    model = open_classifier(name, random_weights=True).model
    wanted = ["first", "middle", "last"]
    found = layers_by_depth(model, wanted, torch.zeros(1, 3, side, side))
    assert list(found.values()) == expected


def test_a_child_of_that_name_comes_first() -> None:
    model = nn.Sequential()
    model.add_module("first", nn.Conv2d(3, 2, 1))
    model.add_module("again", nn.Conv2d(2, 2, 1))
    assert layers_by_depth(model, ["first"], IMAGE) == {"first": "first"}


def test_a_wrong_name_and_a_model_without_layers() -> None:
    with pytest.raises(FedgazeError, match=r"no layer 'cnov'"):
        layers_by_depth(nn.Sequential(nn.Conv2d(3, 2, 1)), ["cnov"], IMAGE)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 2))
    with pytest.raises(FedgazeError, match=r"no layer that lies over the image"):
        layers_by_depth(flat, ["first"], IMAGE)
