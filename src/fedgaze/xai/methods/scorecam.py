"""Score-CAM and its relatives: channels weighted by the score of the image behind them."""

import torch
from torch import Tensor

from fedgaze.errors import FedgazeError, nearest
from fedgaze.xai.maps import extent
from fedgaze.xai.methods.budget import Judge, foretold, read_budget
from fedgaze.xai.methods.cam import wide
from fedgaze.xai.methods.channels import first_of, scattered, weighted_by
from fedgaze.xai.methods.inputs import at_least
from fedgaze.xai.methods.masks import enlarged, masked, unit
from fedgaze.xai.runner import Runner

__all__ = ["is_cam", "score_cam", "ss_cam"]

WEIGHTINGS = ("softmax", "probability")
SMOOTHINGS = ("activation", "input")
PATHS = ("paper", "straight")


def score_cam(runner: Runner, *, channels: int | None = None, weighting: str = "softmax") -> Tensor:
    """Weight each channel by the score of the image behind it.

    ``alpha_k = softmax_k(f(X H_k) - f(X_b))`` with ``H_k = s(Up(A_k))``: Wang et al., "Score-CAM:
    Score-Weighted Visual Explanations for Convolutional Neural Networks", CVPR Workshops 2020,
    Eq. 4-7 and Algorithm 1. A channel is first enlarged to the size of the image, then scaled to
    [0, 1] by s, and multiplied with the image X; f is the target's logit. The map is
    ``relu(sum_k alpha_k A_k)``. The score of the baseline X_b is the same for all channels and
    cancels under the softmax, so that it need not be run. A channel that is the same everywhere has
    no H_k: it takes no part, and costs no run.

    Others differ. The authors' code weights by the probability of the class behind each mask, with
    no softmax over the channels: ``weighting="probability"``. pytorch-grad-cam enlarges with
    aligned corners; torchcam (as of 0.5) scales before it enlarges; both let channels that are the
    same everywhere take part with the score of an empty image.

    Args:
        runner: The model, images and layer.
        channels: How many channels are run, at least 8; the scores of the others are foretold, see
            `fedgaze.xai.methods.budget.foretold`. None for all, which is the method as it stands.
            With a twentieth of the channels, maps had a median rank correlation of 0.99 with those
            of all (SqueezeNet 1.1, 20 photographs; lowest 0.89; MobileNetV2, 7, lowest 0.95).
        weighting: ``"softmax"`` or ``"probability"``; the latter where a class is explained, else
            the score itself.

    Returns:
        ``(N, S, *s)``; not negative where the activations are not.

    Raises:
        FedgazeError: An option is out of its range.
    """
    activations = runner.captured(gradients=False).activations
    images, size = runner.images, runner.images.shape[2:]
    probability = _is_probability(weighting)

    def judge(index: Tensor) -> Tensor:
        def behind(n: Tensor, v: Tensor) -> Tensor:
            return masked(images, n, unit(enlarged(activations[n, index[n, v]], size)))

        return runner.scores(behind, index.shape[1], probability=probability)

    return _map(activations, judge, channels, weighting)


def ss_cam(
    runner: Runner,
    *,
    smooth: str = "activation",
    samples: int = 35,
    sigma: float = 2.0,
    channels: int | None = None,
    weighting: str = "softmax",
) -> Tensor:
    """Weight each channel by the mean score of noisy images behind it: smoothed Score-CAM.

    ``alpha_k = softmax_k(1/N sum_i f(M_ki) - f(X_b))``: Wang, Naidu, Michael and Kundu, "SS-CAM:
    Smoothed Score-CAM for Sharper Visual Feature Localization", arXiv 2006.14255, 2020. With noise
    ``d ~ N(0, sigma)`` it is added to the mask, ``M_k = X (H_k + d)``: SS-CAM(1); or to the image
    behind the mask, ``M_k = X H_k + d``: SS-CAM(2). The rest is `score_cam`. N is 35 and sigma 2
    in the authors' code, N is 10 in the paper's last version.

    All channels meet the same N samples of noise, which leaves the mean of each as it is and makes
    their comparison less noisy. The authors' code for SS-CAM(1) adds the noise to the activations
    before they are scaled, and squares sigma; torchcam has SS-CAM(1) alone, as here but for the
    differences named in `score_cam`.

    Args:
        runner: The model, images and layer.
        smooth: ``"activation"`` for SS-CAM(1), ``"input"`` for SS-CAM(2).
        samples: N.
        sigma: The standard deviation; of a mask in [0, 1], or in the units of the image.
        channels: See `score_cam`.
        weighting: See `score_cam`.

    Returns:
        ``(N, S, *s)``; not negative where the activations are not.

    Raises:
        FedgazeError: An option is out of its range.
    """
    _check("smooth", smooth, SMOOTHINGS)
    at_least("samples", samples, 1)
    if not sigma >= 0:
        raise FedgazeError(f"sigma is {sigma}; allowed is 0 or more")
    activations = runner.captured(gradients=False).activations
    images, size = runner.images, runner.images.shape[2:]
    probability = _is_probability(weighting)

    def judge(index: Tensor) -> Tensor:
        def behind(n: Tensor, v: Tensor) -> Tensor:
            channel, sample = v // samples, v % samples
            masks = unit(enlarged(activations[n, index[n, channel]], size))
            if smooth == "input":
                return masked(images, n, masks).add_(runner.noise(sample), alpha=sigma)
            return masked(images, n, masks.add_(runner.noise(sample, size), alpha=sigma))

        count = index.shape[1]
        judged = wide(runner.scores(behind, count * samples, probability=probability))
        mean: Tensor = judged.unflatten(2, (count, samples)).mean(3)
        return mean

    return _map(activations, judge, channels, weighting)


def is_cam(
    runner: Runner, *, steps: int = 10, path: str = "paper", channels: int | None = None
) -> Tensor:
    """Weight each channel by the mean score along the way to the image behind it.

    ``alpha_k = softmax_k(1/N sum_(i=0..N) f(M_i) - f(X_b))`` with
    ``M_i = sum_(j=0..i-1) j/N X H_k``: Naidu et al., "IS-CAM: Integrated Score-CAM for
    axiomatic-based explanations", arXiv 2010.03023, 2020. Steps are added up, so that M_i is
    ``i (i - 1) / (2 N)`` times the image behind the mask: up to ``(N - 1) / 2`` times as bright.
    ``path="straight"`` is the path from an empty image to the one behind the mask, ``i/N`` times
    it for i from 1 to N, as in Integrated Gradients. M_0 and M_1 are empty and thus, like X_b, the
    same for all channels: they cancel and need not be run. The rest is `score_cam`. torchcam (as of
    0.5) goes one step further, to ``(N + 1) / 2``.

    Args:
        runner: The model, images and layer.
        steps: N, at least 2.
        path: ``"paper"`` or ``"straight"``.
        channels: See `score_cam`.

    Returns:
        ``(N, S, *s)``; not negative where the activations are not.

    Raises:
        FedgazeError: An option is out of its range.
    """
    at_least("steps", steps, 2)
    _check("path", path, PATHS)
    activations = runner.captured(gradients=False).activations
    images, size = runner.images, runner.images.shape[2:]
    i = torch.arange(1, steps + 1, device=images.device, dtype=wide(images[:0]).dtype)
    factors = (i * (i - 1) / 2)[1:] / steps if path == "paper" else i / steps

    def judge(index: Tensor) -> Tensor:
        def behind(n: Tensor, v: Tensor) -> Tensor:
            channel, step = v // len(factors), v % len(factors)
            masks = unit(enlarged(activations[n, index[n, channel]], size))
            return masked(images, n, masks.mul_(factors[step].view(-1, *[1] * len(size))))

        count = index.shape[1]
        judged = wide(runner.scores(behind, count * len(factors)))
        mean: Tensor = judged.unflatten(2, (count, len(factors))).sum(3) / steps
        return mean

    return _map(activations, judge, channels, "softmax")


def _map(activations: Tensor, judge: Judge, channels: int | None, weighting: str) -> Tensor:
    live = ~extent(activations.flatten(0, 1)).flat.view(activations.shape[:2])
    index = first_of(live)
    if channels is not None and read_budget(channels) < index.shape[1]:
        known = foretold(activations, live, judge, channels)
        scores = known.masked_fill(~live[:, None], -torch.inf)
    else:
        scores = scattered(wide(judge(index)), index, live, rest=-torch.inf)
    if weighting == "softmax":
        # The highest score is subtracted first; without any channel it is not finite.
        highest = scores.amax(2, keepdim=True)
        scores = (scores - torch.where(highest.isfinite(), highest, 0)).exp()
        total = scores.sum(2, keepdim=True)
        return weighted_by(activations, scores / torch.where(total > 0, total, 1))
    return weighted_by(activations, scores.masked_fill(~live[:, None], 0))


def _is_probability(weighting: str) -> bool:
    _check("weighting", weighting, WEIGHTINGS)
    return weighting == "probability"


def _check(what: str, given: str, allowed: tuple[str, ...]) -> None:
    if given not in allowed:
        raise FedgazeError(
            f"{what} is {given!r}; allowed are {', '.join(allowed)}{nearest(str(given), allowed)}"
        )
