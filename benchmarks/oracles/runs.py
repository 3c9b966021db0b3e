"""Loops from papers, in float64, for methods that run the model again on changed images."""

from collections.abc import Callable

import numpy as np
import torch

from oracles.cases import Array, Case, logit
from oracles.draws import normal, rise_masks
from oracles.layer import weighted


def enlarging(small: int, large: int) -> Array:
    """The matrix ``(large, small)`` of linear interpolation between the centres of pixels."""
    matrix = np.zeros((large, small))
    for row in range(large):
        at = min(max((row + 0.5) * small / large - 0.5, 0), small - 1)
        low = int(at)
        matrix[row, low] += 1 - (at - low)
        matrix[row, min(low + 1, small - 1)] += at - low
    return matrix


def enlarged(map_: Array, size: tuple[int, ...]) -> Array:
    made: Array = enlarging(map_.shape[0], size[0]) @ map_ @ enlarging(map_.shape[1], size[1]).T
    return made


def unit(map_: Array) -> Array | None:
    """To [0, 1]; None where there is nothing to scale."""
    spread = map_.max() - map_.min()
    return None if spread == 0 else (map_ - map_.min()) / spread


def softmax(scores: Array) -> Array:
    e = np.exp(scores - scores.max())
    found: Array = e / e.sum()
    return found


def _by_masks(case: Case, judge: Callable[[int, list[Array]], list[float]]) -> Array:
    """Score-CAM's frame: weights by a softmax over what is said of each channel's mask."""
    a, _ = case.pair
    size = tuple(case.images.shape[2:])
    weights = np.zeros(a.shape[:2])
    for n, channels in enumerate(a):
        masks = [unit(enlarged(each, size)) for each in channels]
        live = [k for k, each in enumerate(masks) if each is not None]
        shown = [each for each in masks if each is not None]
        weights[n, live] = softmax(np.array(judge(n, shown)))
    return weighted(a, weights)


def score_cam(case: Case) -> Array:
    """Algorithm 1, the score of the baseline included."""

    def judge(n: int, masks: list[Array]) -> list[float]:
        image, label = case.images[n].numpy(), case.classes[n]
        nothing = case.logits(np.zeros((1, *image.shape)))[0, label]
        scores: list[float] = []
        for start in range(0, len(masks), 64):
            behind = np.stack([image * each for each in masks[start : start + 64]])
            scores += (case.logits(behind)[:, label] - nothing).tolist()
        return scores

    return _by_masks(case, judge)


def ss_cam(case: Case, samples: int) -> Array:
    """SS-CAM(1), sigma 2: noise is added to the masks; each channel meets the same noise."""

    def judge(n: int, masks: list[Array]) -> list[float]:
        image, label = case.images[n].numpy(), case.classes[n]
        noise = [2.0 * normal(tuple(image.shape[1:]), v).double().numpy() for v in range(samples)]
        found = []
        for mask in masks:
            behind = np.stack([image * (mask + each) for each in noise])
            found.append(float(case.logits(behind)[:, label].mean()))
        return found

    return _by_masks(case, judge)


def is_cam(case: Case, steps: int) -> Array:
    """M_i is the sum of j/N times the image behind the mask, over j below i."""

    def judge(n: int, masks: list[Array]) -> list[float]:
        image, label = case.images[n].numpy(), case.classes[n]
        found = []
        for mask in masks:
            behind = np.stack(
                [sum(j / steps for j in range(i)) * image * mask for i in range(steps + 1)]
            )
            found.append(float(case.logits(behind)[:, label].sum() / steps))
        return found

    return _by_masks(case, judge)


def ablation_cam(case: Case) -> Array:
    """Eq. 3: the share of the score that is lost without each channel."""
    a, _, logits = case.passed(logit)
    model = case.copy()
    hidden = [0, 0]

    def without(_module: object, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        changed = output.clone()
        changed[:, hidden[1]] = 0
        return changed

    model.get_submodule(case.layer).register_forward_hook(without)
    weights = np.zeros(a.shape[:2])
    with torch.no_grad():
        for k in range(a.shape[1]):
            hidden[1] = k
            scores = model(case.images).double().numpy()
            for n, label in enumerate(case.classes):
                y = logits[n, label]
                weights[n, k] = (y - scores[n, label]) / y
    return weighted(a, weights)


def blurred(image: Array, kernel: int, sigma: float) -> Array:
    """A Gaussian of so many pixels, mirrored at the borders, row by row and column by column."""
    reach = np.arange(kernel) - kernel // 2
    weights = np.exp(-(reach**2) / (2 * sigma**2))
    weights /= weights.sum()
    for axis in (1, 2):
        # NumPy mirrors as often as it takes where the kernel is wider than the image.
        margin = [(0, 0)] * 3
        margin[axis] = (kernel // 2, kernel // 2)
        padded = np.pad(image, margin, mode="reflect")
        image = np.apply_along_axis(np.convolve, axis, padded, weights, "valid")
    return image


def group_cam(case: Case, groups: int = 32) -> Array:
    a, g = case.pair
    size = tuple(case.images.shape[2:])
    maps = np.zeros((len(a), *a.shape[2:]))
    for n, label in enumerate(case.classes):
        image = case.images[n].double().numpy()
        baseline = blurred(image, 51, 50.0)
        nothing = case.logits(baseline[None])[0, label]
        weights = g[n].mean((1, 2))
        for which in np.array_split(np.arange(len(weights)), groups):
            mask = np.maximum(sum(weights[k] * a[n, k] for k in which), 0)
            kept = unit(np.where(mask > np.percentile(mask, 70), mask, 0))
            if kept is None:
                continue
            large = enlarged(kept, size)
            shown = image * large + baseline * (1 - large)
            maps[n] += (case.logits(shown[None])[0, label] - nothing) * kept
    return maps


def rise(case: Case, masks: int) -> Array:
    """Eq. 6, with the probability of the class."""
    size = (case.images.shape[2], case.images.shape[3])
    drawn = rise_masks(masks, 7, 0.5, size)
    maps = np.zeros((len(case.images), *size))
    for n, label in enumerate(case.classes):
        for mask in drawn:
            logits = case.logits(case.images[n].numpy()[None] * mask)[0]
            maps[n] += softmax(logits)[label] * mask / (0.5 * masks)
    return maps


def quantiles(case: Case) -> Array:
    """Of the uniform distribution, as many as the layer has positions: what sorted numbers are."""
    count = case.pair[0][:, 0].size
    return ((np.arange(count) + 0.5) / count)[None]
