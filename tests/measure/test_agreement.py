"""Agreement against SciPy and scikit-image."""

import pytest
import torch
from scipy.stats import pearsonr
from skimage.metrics import structural_similarity
from torch import Tensor

from fedgaze import measure


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(4, 20, 26, generator=generator)
    return first, (first + torch.rand(first.shape, generator=generator)) / 2


def test_pearson_equals_scipys(pair: tuple[Tensor, Tensor]) -> None:
    expected = [
        pearsonr(a.flatten().numpy(), b.flatten().numpy()).statistic
        for a, b in zip(*pair, strict=True)
    ]
    torch.testing.assert_close(measure.pearson(*pair).double(), torch.tensor(expected).double())
    assert measure.pearson(pair[0], torch.ones_like(pair[0])).isnan().all()


@pytest.mark.parametrize("signed", [False, True])
def test_ssim_equals_scikit_images(pair: tuple[Tensor, Tensor], signed: bool) -> None:
    first, second = (2 * each - 1 for each in pair) if signed else pair
    expected = [
        structural_similarity(
            a.double().numpy(),
            b.double().numpy(),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=2.0 if signed else 1.0,
        )
        for a, b in zip(first, second, strict=True)
    ]
    torch.testing.assert_close(
        measure.ssim(first, second).double(), torch.tensor(expected).double(), rtol=1e-4, atol=1e-5
    )


def test_maps_smaller_than_the_window_have_a_value() -> None:
    small = torch.rand(2, 4, 7)
    torch.testing.assert_close(measure.ssim(small, small), torch.ones(2))


def test_strongest_pixels_in_common() -> None:
    first = torch.tensor([[[4.0, 3.0, 2.0, 1.0]]])
    assert measure.top_k_overlap(first, first.flip(2), share=0.5).item() == 0
    assert measure.top_k_overlap(first, torch.tensor([[[4.0, 1.0, 2.0, 3.0]]]), share=0.5) == 0.5
    assert measure.top_k_overlap(first, torch.zeros_like(first)).isnan().item()
