"""Information curves by hand, with the sizes of the files that Pillow writes."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fedgaze import measure
from fedgaze.errors import FedgazeError
from fedgaze.measure.information import information
from fedgaze.xai import baseline_of, open_runner

SHARES = (0.1, 0.3, 0.6)


@pytest.fixture
def pictures() -> Tensor:
    return torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def sharp() -> nn.Module:
    """Class 1 where neighbours differ, class 0 where the image is smooth."""
    model = nn.Sequential(nn.Conv2d(3, 1, (1, 2), bias=False), Rectify(), nn.Linear(1, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -1.0]).expand(1, 3, 1, 2) / 3)
        model[2].weight.copy_(torch.tensor([[0.0], [60.0]]))
        model[2].bias.copy_(torch.tensor([5.0, 0.0]))
    return model.eval()


class Rectify(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.abs().mean((2, 3))


def size(picture: Tensor) -> int:
    pixels = (picture * 255).round().byte().permute(1, 2, 0).numpy()
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "WEBP", lossless=True, quality=0, method=0)
    return len(held.getvalue())


def test_information_is_the_size_of_a_file(pictures: Tensor) -> None:
    grey = pictures.mean(1, keepdim=True)
    assert information(pictures).tolist() == [size(each) for each in pictures]
    assert information(grey).tolist() == [size(each.expand(3, -1, -1)) for each in grey]
    smooth = baseline_of(pictures, "blur")
    assert (information(smooth) < information(pictures)).all()


def test_areas_over_information(sharp: nn.Module, pictures: Tensor) -> None:
    heat = torch.rand(2, 24, 24, generator=torch.Generator().manual_seed(1))
    blurred = baseline_of(pictures, "blur")
    soft, named = [], []
    for image, hidden, map_ in zip(pictures, blurred, heat, strict=True):
        order = map_.flatten().argsort(descending=True)
        points = []
        for count in (0, *(round(share * 576) for share in SHARES), 576):
            seen = torch.zeros(576, dtype=torch.bool)
            seen[order[:count]] = True
            shown = torch.where(seen.view(24, 24), image, hidden)
            with torch.no_grad():
                chances = sharp(shown[None]).softmax(1)[0]
            points.append((size(shown), float(chances[1]), float(chances.argmax() == 1)))
        known, chance, right = (np.array(each, dtype=float) for each in zip(*points, strict=True))

        def curve(values: np.ndarray) -> np.ndarray:
            scaled = ((values - values[0]) / (values[-1] - values[0])).clip(0, 1)
            return np.maximum.accumulate(scaled)

        soft.append(float(np.trapezoid(curve(chance), curve(known))))
        named.append(float(np.trapezoid(curve(right), curve(known))))
    with open_runner(sharp, pictures, 1) as runner:
        found = measure.sic(runner, heat, pictures, shares=SHARES)
        torch.testing.assert_close(found, torch.tensor(soft), rtol=1e-4, atol=1e-5)
        found = measure.aic(runner, heat, pictures, shares=SHARES)
        torch.testing.assert_close(found, torch.tensor(named), rtol=1e-4, atol=1e-5)
        assert all(0 < each < 1 for each in named)


def test_where_the_blurred_image_is_as_good_there_is_no_value(
    sharp: nn.Module, pictures: Tensor
) -> None:
    with open_runner(sharp, pictures, 0) as runner:  # for which smooth images speak
        heat = torch.rand(2, 24, 24)
        assert measure.sic(runner, heat, pictures).isnan().all()
        assert measure.aic(runner, heat, pictures).isnan().all()


def test_other_pictures_are_refused(sharp: nn.Module, pictures: Tensor) -> None:
    with (
        open_runner(sharp, pictures, 0) as runner,
        pytest.raises(FedgazeError, match=r"pictures have the shape \(1, 3, 24, 24\)"),
    ):
        measure.sic(runner, torch.rand(2, 24, 24), pictures[:1])
