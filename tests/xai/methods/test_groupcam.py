"""Group-CAM, beside a loop over the groups."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedgaze.errors import FedgazeError
from fedgaze.xai import explain
from fedgaze.xai.methods.groupcam import unit_groups

Array = NDArray[np.float64]


@pytest.fixture
def truth(
    full_graph: Callable[..., tuple[Tensor, Tensor]], grown: Callable[..., Array]
) -> Callable[..., Array]:
    """Section 3 of the paper, for groups of as many channels each."""

    def make(
        model: nn.Module,
        images: Tensor,
        labels: list[int],
        groups: int,
        percentile: float,
        sigma: float,
    ) -> Array:
        own, back = full_graph(model, model.last, images, torch.tensor(labels))
        size = images.shape[2:]
        bell = np.exp(-0.5 * (np.arange(-2, 3) / sigma) ** 2)
        kernel = np.outer(bell, bell) / bell.sum() ** 2
        maps = []
        for n, label in enumerate(labels):
            image = images[n].numpy()
            padded = np.pad(image, ((0, 0), (2, 2), (2, 2)), mode="reflect")
            blurred = np.zeros_like(image)
            for i in range(size[0]):
                for j in range(size[1]):
                    blurred[:, i, j] = (padded[:, i : i + 5, j : j + 5] * kernel).sum((1, 2))

            def score(x: Array, label: int = label) -> float:
                return float(model(torch.from_numpy(x)[None])[0, label])

            each = own.shape[1] // groups
            found = np.zeros(own.shape[2:])
            for group in range(groups):
                mask = np.zeros(own.shape[2:])
                for k in range(group * each, (group + 1) * each):
                    mask += float(back[n, k].mean()) * own[n, k].numpy()
                mask = np.maximum(mask, 0)
                mask[mask <= np.percentile(mask, percentile)] = 0
                if mask.max() > mask.min():
                    mask = (mask - mask.min()) / (mask.max() - mask.min())
                shown = grown(mask, size)
                gain = score(image * shown + blurred * (1 - shown)) - score(blurred)
                found += gain * mask
            maps.append(found)
        return np.stack(maps)

    return make


@pytest.mark.parametrize(("groups", "percentile"), [(4, 70.0), (2, 0.0), (8, 50.0)])
def test_group_cam_is_the_papers_sum(
    staged: Callable[..., nn.Module],
    pictures: Callable[..., Tensor],
    truth: Callable[..., Array],
    groups: int,
    percentile: float,
) -> None:
    model, images = staged(8), pictures()
    options: dict[str, Any] = {"groups": groups, "percentile": percentile}
    found = explain(
        model, images, "groupcam", [1, 3], "last", relu=False, kernel=5, sigma=1.5, **options
    ).raw.numpy()
    expected = truth(model, images, [1, 3], groups, percentile, 1.5)
    assert found == pytest.approx(expected, rel=1e-8, abs=1e-10)
    assert np.abs(expected).max() > 1e-3


def test_masks_worked_by_hand() -> None:
    # Weights are the means of the gradients, 1 and -1, then 2 and 0. The first group's mask is
    # relu([5, 1, 2, 0] - [1, 3, 0, 0]) = [4, 0, 2, 0], whose median is 1; the second's
    # [0, 2, 4, 6], whose median is 3. What is above stays, and is divided by the maximum.
    activations = torch.tensor(
        [[[5.0, 1, 2, 0], [1.0, 3, 0, 0], [0.0, 1, 2, 3], [9.0, 9, 0, 0]]]
    ).view(1, 4, 2, 2)
    weights = torch.tensor([1.0, -1.0, 2.0, 0.0])
    gradients = weights.view(1, 1, 4, 1, 1).expand(1, 1, 4, 2, 2)
    found = unit_groups(activations, gradients, 2, 50.0)
    expected = torch.tensor([[1.0, 0, 0.5, 0], [0, 0, 4 / 6, 1]]).view(1, 1, 2, 2, 2)
    assert torch.allclose(found, expected)


def test_more_groups_than_channels_are_as_many_as_channels(
    staged: Callable[..., nn.Module], pictures: Callable[..., Tensor]
) -> None:
    model, images = staged(5), pictures()
    many = explain(model, images, "groupcam", 0, "last", groups=32).raw
    assert torch.equal(many, explain(model, images, "groupcam", 0, "last", groups=5).raw)


def test_groups_without_a_mask_have_no_part_and_are_not_nan(
    staged: Callable[..., nn.Module], pictures: Callable[..., Tensor]
) -> None:
    model = staged(4)
    with torch.no_grad():
        model.last[0].weight.zero_()
    found = explain(model, pictures(), "groupcam", 0, "last")
    assert not found.raw.any()
    assert "not_finite" not in found.flags[0]


def test_the_probability_takes_the_place_of_the_logit_where_masks_are_judged(
    staged: Callable[..., nn.Module], pictures: Callable[..., Tensor]
) -> None:
    class Likely(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = staged(8)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.body(x)
            return logits

    model, images = Likely(), pictures()
    one = explain(model, images, "groupcam", 2, "body.last", relu=False, groups=1)
    likely = explain(
        model, images, "groupcam", 2, "body.last", relu=False, groups=1, probability=True
    )
    # With one group the map is its mask times the gain; a probability gains one at most.
    assert float(likely.raw.abs().max()) <= 1
    assert float(one.raw.abs().max()) != pytest.approx(float(likely.raw.abs().max()))


def test_several_targets_and_other_batches_change_nothing(
    staged: Callable[..., nn.Module], pictures: Callable[..., Tensor]
) -> None:
    model, images = staged(8), pictures(3)
    labels = torch.tensor([[0, 3], [1, 2], [2, 0]])
    both = explain(model, images, "groupcam", labels, "last", groups=4).raw
    cut = explain(model, images, "groupcam", labels, "last", groups=4, batch_size=3).raw
    assert torch.allclose(both, cut, rtol=1e-9)
    for row in range(3):
        for column in range(2):
            label = int(labels[row, column])
            alone = explain(model, images[row : row + 1], "groupcam", label, "last", groups=4).raw
            assert torch.allclose(alone[0], both[2 * row + column], rtol=1e-8)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"groups": 0}, "groups is 0"),
        ({"percentile": 100}, "percentile is 100"),
        ({"percentile": -1}, "percentile is -1"),
        ({"kernel": 4}, "kernel is 4"),
        ({"sigma": 0.0}, "sigma 0.0"),
    ],
)
def test_what_cannot_be_is_refused(
    staged: Callable[..., nn.Module],
    pictures: Callable[..., Tensor],
    options: dict[str, Any],
    said: str,
) -> None:
    with pytest.raises(FedgazeError, match=said):
        explain(staged(), pictures(), "groupcam", 0, "last", **options)
