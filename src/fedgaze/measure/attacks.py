"""Attacks and corruptions: images changed a little, and how alike the heatmaps then still are.

Pictures are ``(N, C, H, W)`` in [0, 1], before normalisation.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fedgaze.errors import FedgazeError, nearest
from fedgaze.measure.agreement import pearson, spearman, ssim, top_k_overlap
from fedgaze.xai import frozen, logits_of

__all__ = ["ATTACKS", "CORRUPTIONS", "agreement", "attacked", "corrupted"]

ATTACKS = ("fgsm", "pgd")
PGD_STEPS = 20


def attacked(  # noqa: PLR0913 - the model, what it sees, and how it is attacked
    model: nn.Module,
    pictures: Tensor,
    classes: Tensor,
    attack: str = "pgd",
    *,
    epsilon: float = 8 / 255,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    seed: int = 0,
) -> Tensor:
    """Pictures changed by up to epsilon a number, so that the model doubts their class.

    ``fgsm``: ``x + e · sign(grad_x L(x, c))`` with the cross-entropy L: Goodfellow, Shlens and
    Szegedy, "Explaining and Harnessing Adversarial Examples", ICLR 2015. ``pgd``: 20 such steps of
    ``2.5 e / 20``, each brought back into the cube of e, from a random start in it: Madry et al.,
    "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018. Both are foolbox's.

    Args:
        model: In eval mode; its parameters are left as they are.
        pictures: ``(N, C, H, W)`` in [0, 1].
        classes: ``(N,)``: the classes to be doubted.
        attack: ``"fgsm"`` or ``"pgd"``.
        epsilon: e, in (0, 1].
        mean: What is taken from pictures before the model sees them, one or one a channel.
        std: What they are divided by then.
        seed: Of the random start.

    Returns:
        ``(N, C, H, W)`` in [0, 1].

    Raises:
        FedgazeError: There is no such attack, epsilon is out of range, or foolbox is missing.
    """
    if attack not in ATTACKS:
        raise FedgazeError(
            f"there is no attack {attack!r}; allowed are {', '.join(ATTACKS)}"
            f"{nearest(attack, ATTACKS)}"
        )
    if not 0 < epsilon <= 1:
        raise FedgazeError(f"epsilon is {epsilon:g}; allowed is above 0, up to 1")
    try:
        from foolbox import Misclassification, PyTorchModel
        from foolbox.attacks import LinfFastGradientAttack, LinfProjectedGradientDescentAttack
    except ModuleNotFoundError as error:
        raise FedgazeError(
            "attacks need foolbox, which is not installed: pip install 'fedgaze[attacks]'"
        ) from error

    device = pictures.device
    scale = [torch.tensor(each, device=device).view(-1, 1, 1) for each in (mean, std)]
    asked = PyTorchModel(
        _Logits(model).eval(),
        bounds=(0, 1),
        device=device,
        preprocessing={"mean": scale[0], "std": scale[1]},
    )
    how = (
        LinfFastGradientAttack()
        if attack == "fgsm"
        else LinfProjectedGradientDescentAttack(steps=PGD_STEPS, rel_stepsize=2.5 / PGD_STEPS)
    )
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), frozen(model):
        torch.manual_seed(seed)
        found: Tensor = how.run(asked, pictures, Misclassification(classes), epsilon=epsilon)
    return found.detach()


class _Logits(nn.Module):
    """A model whose output is its logits, whatever its library wraps them in."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        # Hidden from `modules()`: whoever sets flags of this one leaves those of the model alone.
        self.asked = [model]

    def forward(self, images: Tensor) -> Tensor:
        return logits_of(self.asked[0](images))


# Severities 1 to 5, those of ImageNet-C.
_NOISE = (0.08, 0.12, 0.18, 0.26, 0.38)
_BLUR = (1.0, 2.0, 3.0, 4.0, 6.0)
_JPEG = (25, 18, 15, 10, 7)
_CONTRAST = (0.4, 0.3, 0.2, 0.1, 0.05)


def _noise(pictures: Tensor, level: int, seed: int) -> Tensor:
    generator = torch.Generator(pictures.device).manual_seed(seed)
    drawn = torch.randn(pictures.shape[1:], generator=generator, device=pictures.device)
    return (pictures + _NOISE[level] * drawn.to(pictures)).clamp(0, 1)


def _blur(pictures: Tensor, level: int, _seed: int) -> Tensor:
    from torchvision.transforms.v2 import functional as tv

    sigma = _BLUR[level]
    # Three standard deviations to each side, but no kernel wider than what can be mirrored.
    side = min(2 * round(3 * sigma) + 1, 2 * min(pictures.shape[2:]) - 1)
    found: Tensor = tv.gaussian_blur(pictures, [side, side], [sigma, sigma])
    return found


def _jpeg(pictures: Tensor, level: int, _seed: int) -> Tensor:
    from torchvision.transforms.v2 import functional as tv

    levels = (pictures * 255).round().to(torch.uint8).cpu()
    coded = torch.stack([tv.jpeg(each, _JPEG[level]) for each in levels])
    return coded.to(pictures) / 255


def _contrast(pictures: Tensor, level: int, _seed: int) -> Tensor:
    mean = pictures.mean((2, 3), keepdim=True)
    return ((pictures - mean) * _CONTRAST[level] + mean).clamp(0, 1)


CORRUPTIONS: dict[str, Callable[[Tensor, int, int], Tensor]] = {
    "noise": _noise,
    "blur": _blur,
    "jpeg": _jpeg,
    "contrast": _contrast,
}


def corrupted(pictures: Tensor, corruption: str, *, severity: int = 1, seed: int = 0) -> Tensor:
    """Pictures as a bad camera, a bad lens or a bad codec would have made them.

    Gaussian noise, Gaussian blur, JPEG and low contrast, at the five severities of Hendrycks and
    Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
    ICLR 2019, whose code says them for photographs of 224 x 224.

    Args:
        pictures: ``(N, C, H, W)`` in [0, 1].
        corruption: ``"noise"``, ``"blur"``, ``"jpeg"`` or ``"contrast"``.
        severity: 1 to 5.
        seed: Of the noise, which is the same for all pictures.

    Returns:
        ``(N, C, H, W)`` in [0, 1].

    Raises:
        FedgazeError: There is no such corruption or severity.
    """
    if corruption not in CORRUPTIONS:
        raise FedgazeError(
            f"there is no corruption {corruption!r}; allowed are {', '.join(CORRUPTIONS)}"
            f"{nearest(corruption, CORRUPTIONS)}"
        )
    if severity not in range(1, 6):
        raise FedgazeError(f"severity is {severity}; allowed is 1 to 5")
    return CORRUPTIONS[corruption](pictures, severity - 1, seed)


def agreement(clean: Tensor, changed: Tensor) -> dict[str, Tensor]:
    """How alike the heatmaps of images and of their changed versions are.

    Args:
        clean: ``(N, H, W)``.
        changed: ``(N, H, W)``, of the same classes.

    Returns:
        ``ssim``, ``spearman``, ``pearson`` and ``top_k``, see `fedgaze.measure.agreement`; each
        ``(N,)``, 1 for the same map, NaN where it is not defined.
    """
    return {
        "ssim": ssim(clean, changed),
        "spearman": spearman(clean, changed),
        "pearson": pearson(clean, changed),
        "top_k": top_k_overlap(clean, changed),
    }
