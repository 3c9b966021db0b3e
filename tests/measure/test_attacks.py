"""Attacks against their closed form on a linear model, corruptions against NumPy and Pillow."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fedgaze.errors import FedgazeError
from fedgaze.measure import agreement, attacked, corrupted

EPSILON = 8 / 255


@pytest.fixture
def linear() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2)).eval()


@pytest.fixture
def pictures() -> Tensor:
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(4))


CLASSES = torch.tensor([0, 1, 1, 0])


def furthest(linear: nn.Module, pictures: Tensor) -> Tensor:
    """Of two classes the one's logit falls against the other's where the weights' signs say."""
    weight = linear[1].weight.detach()
    against = (weight[1 - CLASSES] - weight[CLASSES]).view_as(pictures)
    return (pictures + EPSILON * against.sign()).clamp(0, 1)


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_an_attack_finds_the_corner_that_is_best_for_a_linear_model(
    linear: nn.Module, pictures: Tensor, attack: str
) -> None:
    found = attacked(linear, pictures, CLASSES, attack, epsilon=EPSILON)
    torch.testing.assert_close(found, furthest(linear, pictures), atol=1e-6, rtol=0)


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_normalisation_belongs_to_the_model(
    linear: nn.Module, pictures: Tensor, attack: str
) -> None:
    how: dict[str, Any] = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.1)}
    mean, std = (torch.tensor(how[each]).view(3, 1, 1) for each in ("mean", "std"))
    seen: list[Tensor] = []
    linear.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].detach()))
    found = attacked(linear, pictures, CLASSES, attack, epsilon=EPSILON, **how)
    # The division by a positive number leaves the signs of the gradient as they were.
    torch.testing.assert_close(found, furthest(linear, pictures), atol=1e-6, rtol=0)
    if attack == "fgsm":
        torch.testing.assert_close(seen[0], (pictures - mean) / std)


def test_an_attack_leaves_the_model_and_the_random_state_as_they_were(
    linear: nn.Module, pictures: Tensor
) -> None:
    linear[1].bias.requires_grad_(False)
    before = torch.get_rng_state()
    first = attacked(linear, pictures, CLASSES)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(each.grad is None for each in linear.parameters())
    assert [each.requires_grad for each in linear.parameters()] == [True, False]
    assert torch.equal(attacked(linear, pictures, CLASSES), first)


def test_an_attack_reads_outputs_of_transformers_and_lowers_the_class(pictures: Tensor) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        image_size=16, patch_size=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(config).eval()
    found = attacked(model, pictures, CLASSES, "pgd")
    with torch.no_grad():
        before, after = (
            model(each).logits.log_softmax(1).gather(1, CLASSES[:, None])
            for each in (pictures, found)
        )
    assert (after < before).all()
    assert (found - pictures).abs().max() <= EPSILON + 1e-6


@pytest.mark.parametrize(
    ("name", "how", "says"),
    [
        ("pdg", {}, "allowed are fgsm, pgd; did you mean 'pgd'?"),
        ("pgd", {"epsilon": 8.0}, "epsilon is 8; allowed is above 0, up to 1"),
        ("pgd", {"epsilon": 0.0}, "epsilon is 0; allowed"),
    ],
)
def test_what_cannot_be_used_is_said(
    linear: nn.Module, pictures: Tensor, name: str, how: dict[str, Any], says: str
) -> None:
    with pytest.raises(FedgazeError, match=says.replace("?", r"\?")):
        attacked(linear, pictures, CLASSES, name, **how)


def test_noise_has_its_standard_deviation_and_is_the_same_for_all_pictures() -> None:
    grey = torch.full((2, 3, 64, 64), 0.5)
    found = corrupted(grey, "noise", severity=1)
    assert torch.equal(found[0], found[1])
    assert float((found - grey).std()) == pytest.approx(0.08, rel=0.05)


def test_blur_is_scipy_s() -> None:
    from scipy.ndimage import gaussian_filter

    picture = torch.rand(1, 1, 40, 40, generator=torch.Generator().manual_seed(1))
    found = corrupted(picture, "blur", severity=2)[0, 0].numpy()
    expected = gaussian_filter(picture[0, 0].double().numpy(), 2.0, mode="mirror", truncate=3)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_jpeg_is_as_coarse_as_pillow_s(pictures: Tensor) -> None:
    smooth = corrupted(pictures, "blur", severity=3)
    found = corrupted(smooth, "jpeg", severity=1)
    for each, coded in zip(smooth, found, strict=True):
        held = io.BytesIO()
        levels = (each * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        Image.fromarray(levels).save(held, "jpeg", quality=25)
        expected = np.asarray(Image.open(held)).astype(np.float32) / 255
        # Two programs that code, and round on the way.
        assert np.abs(coded.permute(1, 2, 0).numpy() - expected).mean() < 0.01


def test_contrast_shrinks_towards_each_channel_s_mean(pictures: Tensor) -> None:
    found = corrupted(pictures, "contrast", severity=1)
    for each, flat in zip(pictures.flatten(0, 1), found.flatten(0, 1), strict=True):
        values = each.numpy()
        expected = (values - values.mean()) * 0.4 + values.mean()
        np.testing.assert_allclose(flat.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["noise", "blur", "jpeg", "contrast"])
def test_each_severity_is_further_from_the_picture(name: str, real_picture: Tensor) -> None:
    far = [
        float((corrupted(real_picture, name, severity=each) - real_picture).square().mean())
        for each in range(1, 6)
    ]
    assert far == sorted(far)
    assert far[0] > 0


@pytest.fixture(scope="module")
def real_picture() -> Tensor:
    from sklearn.datasets import load_sample_image

    picture = torch.from_numpy(load_sample_image("china.jpg").copy())
    return picture[:224, :224].permute(2, 0, 1)[None] / 255


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda each: corrupted(each, "fog"), "there is no corruption 'fog'"),
        (lambda each: corrupted(each, "blur", severity=6), "severity is 6; allowed is 1 to 5"),
    ],
)
def test_a_corruption_that_is_none_is_refused(
    pictures: Tensor, change: Callable[[Tensor], Tensor], says: str
) -> None:
    with pytest.raises(FedgazeError, match=says):
        change(pictures)


def test_agreement_of_a_map_with_itself_and_with_an_empty_one() -> None:
    maps = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(0))
    same = agreement(maps, maps)
    assert list(same) == ["ssim", "spearman", "pearson", "top_k"]
    for each in same.values():
        torch.testing.assert_close(each.float(), torch.ones(2))
    empty = agreement(maps, torch.zeros(2, 16, 16))
    assert all(empty[each].isnan().all() for each in ("spearman", "pearson", "top_k"))
