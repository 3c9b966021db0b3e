"""Explain: from a model and images to an Explanation."""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from fedgaze.errors import FedgazeError, nearest
from fedgaze.xai.auto import auto_layer
from fedgaze.xai.capture import Capture, Captured
from fedgaze.xai.explanation import Explanation
from fedgaze.xai.layers import Layers, layer_names, named_layers, unwrap
from fedgaze.xai.maps import FUSIONS, INTERPOLATIONS, channels_first, fuse, is_flat, to_heatmaps
from fedgaze.xai.methods import Method, find_method
from fedgaze.xai.targets import Scorer, Targets, read_targets

__all__ = ["explain"]

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def explain(  # noqa: PLR0913 - each has a default that most people keep
    model: nn.Module,
    images: Tensor,
    method: str = "gradcam",
    targets: Targets = None,
    layers: Layers = None,
    *,
    fusion: str = "mean",
    batch_size: int | None = None,
    interpolation: str = "bilinear",
) -> Explanation:
    """Show where a model looks.

    The model runs once, in eval mode, and is left as it was found (train or eval mode, gradients,
    hooks, statistics, random state). It may be frozen, in train mode or under ``no_grad``. Only the
    automatic choice of a layer runs one image more, once for a model and a size of images.

    Args:
        model: A classifier, or any module if targets is a function.
        images: ``(N, C, H, W)`` or ``(C, H, W)``, floats, preprocessed as the model wants them;
            brought to the model's device and dtype.
        method: ``"gradcam"`` or ``"gradcam++"``; see `list_methods`.
        targets: What is explained: None for the predicted class, a class index for all images, one
            an image, or a function from the model's output to scores ``(N,)``, called once for each
            batch.
        layers: None or ``"auto"`` (see `auto_layer`), or what `resolve_layers` takes: a name, a
            Conv2d index, ``"first"``, ``"middle"``, ``"last"``, a module, or several of these. A
            layer that runs more than once is explained at its last call.
        fusion: How the maps of several layers, each divided by its maximum, become one: ``"mean"``,
            ``"max"``, or ``"weighted"``: a mean with the weights 1, 2, … L in the order in which
            the layers ran, so that the deepest counts most.
        batch_size: How many images run at once; None for all.
        interpolation: How maps are brought to the size of the images: ``"bilinear"``,
            ``"bicubic"`` or ``"nearest"``.

    Returns:
        Heatmaps, raw maps, scores and flags; see `Explanation`.

    Raises:
        FedgazeError: An argument cannot be used. What can be known before the model runs is.

    >>> torch.manual_seed(0) and None
    >>> model = nn.Sequential(
    ...     nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    ... )
    >>> explanation = explain(model, torch.rand(3, 1, 8, 6))
    >>> explanation.layers, explanation.heatmaps.shape, explanation.raw.shape
    (('1',), torch.Size([3, 8, 6]), torch.Size([3, 6, 4]))
    """
    compute = find_method(method)
    _check_choice("fusion", fusion, FUSIONS)
    _check_choice("interpolation", interpolation, INTERPOLATIONS)
    model = unwrap(model)
    named = named_layers(model)
    chosen = layer_names(named, layers)
    images = _prepared(model, images)
    classes = read_targets(targets, len(images))
    size = len(images) if batch_size is None else batch_size
    if size < 1:
        raise FedgazeError(f"batch_size is {batch_size}; allowed is 1 and more")
    names = [auto_layer(model, images) if name is None else name for name in chosen]
    modules = {name: named[name] for name in names}
    batches: list[_Batch] = []
    with Capture(model, modules) as capture:
        for start in range(0, len(images), size):
            batch = images[start : start + size]
            part = classes[start : start + size] if isinstance(classes, Tensor) else classes
            scorer = Scorer(part, len(batch))
            captured = capture.run(batch, scorer)
            batches.append(_Batch.of(captured, scorer, modules, compute))
            del captured  # before the next batch needs the memory
    per_layer = {
        name: torch.cat([batch.maps[name] for batch in batches]) for name in batches[0].maps
    }
    maps = list(per_layer.values())
    raw = maps[0] if len(maps) == 1 else fuse(maps, fusion, interpolation)
    logits = torch.cat([batch.logits for batch in batches])
    explained = [batch.classes for batch in batches if batch.classes is not None]
    return Explanation(
        heatmaps=to_heatmaps(raw, images.shape[2:], interpolation),
        raw=raw,
        per_layer=per_layer,
        targets=torch.cat(explained) if explained else None,
        scores=torch.cat([batch.scores for batch in batches]),
        logits=logits,
        predicted=logits.argmax(1),
        layers=tuple(per_layer),
        method=method,
        fusion=fusion,
        flags=_flags(maps, batches, model, size),
    )


@dataclass(frozen=True, eq=False)
class _Batch:
    """What is kept of a batch once activations and gradients are let go."""

    maps: dict[str, Tensor]
    finite: Tensor
    calls: int
    logits: Tensor
    classes: Tensor | None
    scores: Tensor

    @classmethod
    def of(
        cls, captured: Captured, scorer: Scorer, modules: dict[str, nn.Module], compute: Method
    ) -> "_Batch":
        maps: dict[str, Tensor] = {}
        finite = torch.ones_like(scorer.scores, dtype=torch.bool)
        for name, activations in captured.activations.items():
            # Half precision is for running models: sums over a map would lose what is small.
            wide = torch.promote_types(activations.dtype, torch.float32)
            pair = activations.to(wide), captured.gradients[name].to(wide)
            if not channels_first(name, modules[name], activations):
                pair = pair[0].movedim(3, 1), pair[1].movedim(3, 1)
            maps[name] = compute(*pair)
            for tensor in (*pair, maps[name]):
                # One NaN or infinity is enough to make a sum so, and a sum is one quick pass.
                finite &= tensor.sum(tuple(range(1, tensor.dim()))).isfinite()
        maps = {name: torch.where(finite[:, None, None], raw, 0) for name, raw in maps.items()}
        calls = max(captured.calls.values())
        return cls(maps, finite, calls, scorer.logits, scorer.classes, scorer.scores)


def _check_choice(what: str, value: str, allowed: Collection[str]) -> None:
    if value not in allowed:
        raise FedgazeError(
            f"{what} is {value!r}; allowed are {', '.join(allowed)}{nearest(value, allowed)}"
        )


def _prepared(model: nn.Module, images: Tensor) -> Tensor:
    """Images as a batch, on the model's device and of its dtype."""
    if not isinstance(images, Tensor) or not images.is_floating_point():
        what = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise FedgazeError(
            f"images are {what}; allowed is a tensor of floats, preprocessed as the model wants it"
        )
    if images.dim() == 3:
        images = images[None]
    if images.dim() != 4 or not images.numel():
        raise FedgazeError(
            f"images have the shape {tuple(images.shape)}; allowed is (N, C, H, W) or (C, H, W)"
        )
    for tensor in chain(model.parameters(), model.buffers()):
        if tensor.is_floating_point():
            return images.to(tensor)
    return images


def _flags(
    maps: list[Tensor], batches: list[_Batch], model: nn.Module, size: int
) -> tuple[tuple[str, ...], ...]:
    finite = torch.cat([batch.finite for batch in batches])
    zero = torch.stack([each.amax((1, 2)) == 0 for each in maps]).all(0)
    flat = torch.stack([is_flat(each) for each in maps]).all(0)
    columns = {
        "not_finite": ~finite,
        "no_positive_evidence": zero & finite,
        "constant": flat & ~zero,
    }
    if size > 1 and len(finite) > 1 and any(_asks_the_batch(part) for part in model.modules()):
        columns["batch_dependent"] = torch.ones_like(finite)
    if (calls := batches[0].calls) > 1:
        columns[f"last_of_{calls}_calls"] = torch.ones_like(finite)
    rows = torch.stack(list(columns.values()), dim=1).tolist()
    return tuple(tuple(flag for flag, on in zip(columns, row, strict=True) if on) for row in rows)


def _asks_the_batch(module: nn.Module) -> bool:
    """Whether a layer uses the statistics of the batch even in eval mode."""
    return isinstance(module, _BATCH_NORMS) and module.running_mean is None
