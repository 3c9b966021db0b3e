"""ROAD's imputation against a sparse matrix that SciPy solves, assembled pixel by pixel."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.sparse import lil_matrix
from scipy.sparse.linalg import spsolve
from torch import Tensor

from fedgaze import measure
from fedgaze.measure.imputation import impute
from fedgaze.xai import Runner

Array = NDArray[np.float64]
BESIDE, CORNER = 1 / 6, 1 / 12


def solved(image: Array, gone: NDArray[np.bool_]) -> Array:
    """Each missing pixel is the weighted mean of its neighbours."""
    places = [tuple(each) for each in np.argwhere(gone)]
    number = {place: index for index, place in enumerate(places)}
    matrix = lil_matrix((len(places), len(places)))
    right = np.zeros((len(places), image.shape[0]))
    for (row, column), index in number.items():
        for down in (-1, 0, 1):
            for across in (-1, 0, 1):
                place = row + down, column + across
                inside = 0 <= place[0] < gone.shape[0] and 0 <= place[1] < gone.shape[1]
                if (down, across) == (0, 0) or not inside:
                    continue
                weight = CORNER if down and across else BESIDE
                matrix[index, index] += weight
                if place in number:
                    matrix[index, number[place]] -= weight
                else:
                    right[index] += weight * image[:, place[0], place[1]]
    values = spsolve(matrix.tocsc(), right).reshape(len(places), -1)
    made = image.copy()
    for place, value in zip(places, values, strict=True):
        made[:, place[0], place[1]] = value
    return made


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.98])
def test_imputed_pixels_solve_the_system(channels: int, share: float) -> None:
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(4, channels, 13, 18, generator=generator)
    gone = torch.rand(4, 13, 18, generator=generator) < share
    gone[1] = False
    gone[1, 3:11, 2:15] = True  # one large hole
    expected = [
        solved(image.double().numpy(), each.numpy())
        for image, each in zip(images, gone, strict=True)
    ]
    found = impute(images, gone)
    torch.testing.assert_close(found.double(), torch.tensor(np.stack(expected)), rtol=0, atol=1e-4)
    kept = ~gone[:, None].expand_as(images)
    assert torch.equal(found[kept], images[kept])


def test_nothing_and_all_missing() -> None:
    images = torch.rand(2, 3, 6, 6)
    gone = torch.tensor([False, True])[:, None, None].expand(2, 6, 6)
    found = impute(images, gone)
    assert torch.equal(found[0], images[0])
    assert not found[1].any()


def test_a_ramp_is_filled_in_as_a_ramp() -> None:
    """Linear images are their own weighted means."""
    rows, columns = torch.meshgrid(torch.arange(20.0), torch.arange(24.0), indexing="ij")
    image = (0.02 * rows - 0.01 * columns)[None, None]
    gone = torch.zeros(1, 20, 24, dtype=torch.bool)
    gone[0, 4:15, 5:19] = True
    torch.testing.assert_close(impute(image, gone), image, rtol=0, atol=1e-4)


def test_road_is_half_of_what_the_orders_differ(runner: Runner, heatmaps: Tensor) -> None:
    first, last = measure.road_morf(runner, heatmaps), measure.road_lerf(runner, heatmaps)
    torch.testing.assert_close(measure.road(runner, heatmaps), (first - last) / 2)
    torch.testing.assert_close(measure.road_lerf(runner, -heatmaps), first)
