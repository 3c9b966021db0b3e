import dataclasses
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fedgaze.errors import FedgazeError
from fedgaze.xai.tokens import Layout, lay_out, main_tensor, token_layout, with_main

# Their convolutions overlap: a patch changes its neighbours from the first layer on.
OVERLAPPING = ("torchvision MaxViT", "timm MaxViT", "timm PVT v2", "transformers SegFormer")


def test_a_changed_patch_changes_its_place(case: Any, laid: Callable[..., Any]) -> None:
    model = case.build()
    height, width = case.size
    cell = max(case.early[1], case.late[1])
    places = [(0, width // cell - 1), (height // cell - 1, 0), (1, width // cell // 2)]
    images = case.images(1).repeat(len(places) + 1, 1, 1, 1)
    for image, (row, column) in enumerate(places, 1):
        spot = (slice(row * cell, (row + 1) * cell), slice(column * cell, (column + 1) * cell))
        images[(image, slice(None), *spot)] = torch.rand(3, cell, cell)
    for layer, edge in (case.early, case.late):
        found = laid(model, layer, images)
        grid = (-(-height // edge), -(-width // edge))
        assert tuple(found.maps.shape[2:]) == found.layout.grid == grid
        assert found.layout.prefix == (case.prefix if found.layout.tokens else 0)
        changes = (found.maps[1:] - found.maps[:1]).abs().sum(1)
        for change, (row, column) in zip(changes, places, strict=True):
            cells = torch.zeros(grid, dtype=torch.bool)
            step = cell // edge
            cells[row * step : (row + 1) * step, column * step : (column + 1) * step] = True
            assert (change[cells] > 0).all()
            if layer == case.early[0] and case.name not in OVERLAPPING:
                assert change[~cells].count_nonzero() == 0
            else:
                assert change[cells].mean() > 2 * change[~cells].mean()
        _check_the_way_back(found)


def _check_the_way_back(found: Any) -> None:
    maps, layout, tensor = found.maps, found.layout, found.tensor
    back = layout.from_map(maps, tensor)
    assert torch.equal(back, tensor)
    assert back.is_contiguous() or not tensor.is_contiguous()
    # Several changed maps of one image keep its leading tokens.
    many = layout.from_map(maps[:1].repeat(3, *[1] * (maps.dim() - 1)) + 1, tensor[:1])
    assert many.shape == (3, *tensor.shape[1:])
    torch.testing.assert_close(layout.to_map(many)[2], maps[0] + 1)
    if layout.tokens and layout.prefix:
        assert torch.equal(many[2][: layout.prefix], tensor[0][: layout.prefix])


@pytest.mark.parametrize(
    ("name", "layer", "shape", "layout", "order"),
    [
        (
            "torchvision ConvNeXt",
            "features.3.0.block.3",
            (2, 4, 8, 64),
            Layout((4, 8), channels_last=True),
            lambda x: x.permute(0, 3, 1, 2),
        ),
        (
            "timm MLP-Mixer",
            "blocks.1.mlp_tokens",
            (2, 24, 6),
            Layout((2, 3), tokens=True),
            lambda x: x.view(2, 24, 2, 3),
        ),
    ],
)
def test_within_blocks_channels_may_stand_elsewhere(
    cases: Any, laid: Any, name: str, layer: str, shape: Any, layout: Layout, order: Any
) -> None:
    found = laid(cases[name].build(), layer, cases[name].images())
    assert (found.tensor.shape, found.layout) == (shape, layout)
    assert torch.equal(found.maps, order(found.tensor))
    assert torch.equal(layout.from_map(found.maps, found.tensor), found.tensor)


def test_videos(laid: Callable[..., Any]) -> None:
    import transformers as hf
    from torchvision.models.video import SwinTransformer3d

    torch.manual_seed(0)
    swin = SwinTransformer3d([2, 4, 4], 8, [1, 1], [2, 2], [2, 2, 2], num_classes=3).eval()
    found = laid(swin, "norm", torch.rand(1, 3, 4, 16, 24))
    # Merging goes over height and width alone.
    assert (found.layout.channels_last, tuple(found.maps.shape)) == (True, (1, 16, 2, 2, 3))
    assert torch.equal(found.layout.from_map(found.maps, found.tensor), found.tensor)
    config = hf.VideoMAEConfig(
        num_frames=4,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
    )
    mae = hf.VideoMAEForVideoClassification(config).eval()
    found = laid(mae, "videomae", torch.rand(1, 4, 3, 32, 32), video=True)
    assert (found.layout.prefix, tuple(found.maps.shape)) == (0, (1, 16, 2, 4, 4))
    merged = token_layout(1 + 4 * 8 * 6, (4, 16, 12), (8, 64, 48))
    assert merged is not None
    assert (merged.grid, merged.prefix) == ((4, 8, 6), 1)


@pytest.mark.parametrize(
    ("layer", "shape", "last"),
    [
        # Grids decide where one side alone is one: those of 8 x 16 patches are (4, 8), (2, 4), …
        (nn.ReLU(), (1, 16, 8, 16), False),
        (nn.ReLU(), (1, 8, 16, 3), True),
        (nn.ReLU(), (1, 4, 8, 32), True),
        (nn.LayerNorm(16), (1, 3, 8, 16), False),
        # Both or neither: what the layer computes.
        (nn.Linear(4, 8), (1, 4, 8, 8), True),
        (nn.LayerNorm(16), (1, 8, 16, 16), True),
        (nn.Conv2d(3, 8, 1), (1, 8, 8, 16), False),
        (nn.BatchNorm2d(8), (1, 8, 5, 5), False),
        (nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)), (1, 5, 5, 4), True),
        (nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)), (1, 4, 5, 4), False),
        (nn.Sequential(nn.Conv2d(1, 1, 1), nn.LayerNorm(8)), (1, 8, 16, 8), True),
        (nn.ReLU(), (1, 7, 5, 5), False),
    ],
)
def test_where_channels_stand(layer: nn.Module, shape: tuple[int, ...], last: bool) -> None:
    layout = lay_out("x", layer, torch.zeros(shape), (8, 16), (32, 64))
    assert layout.channels_last is last


@given(
    patches=st.tuples(st.integers(2, 30), st.integers(2, 30)),
    prefix=st.integers(0, 16),
    stage=st.integers(0, 2),
)
def test_grids_are_found_from_the_number_of_tokens(
    patches: tuple[int, int], prefix: int, stage: int
) -> None:
    grid = patches
    for _ in range(stage):
        grid = (-(-grid[0] // 2), -(-grid[1] // 2))
    prefix = min(prefix, 1) if stage else prefix
    tokens = grid[0] * grid[1] + prefix
    found = token_layout(tokens, patches, (patches[0] * 4, patches[1] * 4))
    if grid == (1, 1):
        return
    assert found is not None
    rows, columns = found.grid
    assert rows * columns + found.prefix == tokens
    # Another grid only if it leaves fewer tokens over.
    assert found == Layout(grid, prefix, tokens=True, channels_last=True) or found.prefix < prefix


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 77, 8), r"layer 'x' returns .* \(1, 77, 8\), and 77 tokens fit no grid of .* 32 × 48"),
        ((1, 1, 8), "1 tokens fit no grid"),
        ((2, 24, 8), "returns .* for 1 images: it works on windows"),
        ((1, 8), r"returns a tensor of shape \(1, 8\); allowed is a layer"),
        ((1, 8, 2, 4, 6), "allowed is a layer"),
    ],
)
def test_what_cannot_be_laid_out_is_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(FedgazeError, match=message):
        lay_out("x", nn.ReLU(), torch.zeros(shape), (4, 6), (32, 48), 1)


def test_maps_are_views_with_gradients() -> None:
    layout = Layout((2, 3), prefix=1, tokens=True, channels_last=True)
    tokens = torch.rand(2, 7, 4, dtype=torch.float64, requires_grad=True)
    maps = layout.to_map(tokens)
    assert maps.untyped_storage().data_ptr() == tokens.untyped_storage().data_ptr()
    assert maps[1, 2, 1, 0] == tokens[1, 1 + 3, 2]
    assert torch.autograd.gradcheck(lambda t: layout.from_map(layout.to_map(t) * 2, t), [tokens])


Pair = namedtuple("Pair", "maps more")  # noqa: PYI024


@dataclasses.dataclass
class Plain:
    last_hidden_state: Tensor
    more: str = "kept"


def test_what_a_layer_returns_is_unpacked_and_packed_again() -> None:
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    old, new = torch.zeros(2), torch.ones(2)
    pooled = BaseModelOutputWithPooling(last_hidden_state=old, pooler_output=old + 3)
    for output in (
        old,
        (old, None),
        ((old, 1), 2),
        Pair(old, 2),
        OrderedDict(out=old, aux=None),
        {"last_hidden_state": old},
        Plain(old),
        pooled,
    ):
        assert main_tensor(output) is old
        again = with_main(output, new)
        assert type(again) is type(output)
        assert main_tensor(again) is new
        assert main_tensor(output) is old
    again = with_main(pooled, new)
    assert again[0] is again["last_hidden_state"] is again.last_hidden_state is new
    assert torch.equal(again.pooler_output, old + 3)
    assert with_main(Plain(old), new).more == "kept"
    for nothing in (None, (), [old], {"maps": old}, (None, old), "text", {"out": 1}):
        assert main_tensor(nothing) is None
    with pytest.raises(TypeError, match="list has no main tensor"):
        with_main([old], new)
