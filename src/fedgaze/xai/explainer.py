"""Explain: from a model and images to an Explanation."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedgaze.errors import FedgazeError, nearest
from fedgaze.xai.auto import auto_layer
from fedgaze.xai.classes import Classes, Function, read_targets
from fedgaze.xai.explanation import Explanation
from fedgaze.xai.inputs import Images, Inputs, read_inputs
from fedgaze.xai.layers import Layers, layer_names, plain_names, unwrap
from fedgaze.xai.maps import FUSIONS, INTERPOLATIONS, Extent, extent, fuse, to_heatmaps
from fedgaze.xai.memory import Budget, Chunks, read_bytes
from fedgaze.xai.methods import find_method, list_methods
from fedgaze.xai.outputs import predictions
from fedgaze.xai.passes import Part, Plan
from fedgaze.xai.refused import check_model
from fedgaze.xai.registry import Method
from fedgaze.xai.running import outside_autocast
from fedgaze.xai.targets import Target, Targets

__all__ = ["explain"]

SMOOTHINGS = ("augment", "eigen")
PRECISIONS = ("full", "fast", "bf16")

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_BRIGHTNESS = (0.9, 1.0, 1.1)
_OUTER_BATCH = 16
# On a CPU more images at once take more memory and no less time: of a ViT-B/16 the way back from
# 16 photographs takes 80 MiB, of a fast copy a seventh more time than twice 8. In numbers, since
# many small images are run for what a few photographs take.
_ON_CPU_IMAGES, _ON_CPU_NUMBERS = 8, 8 * 3 * 224 * 224


def explain(  # noqa: PLR0913 - each has a default that most people keep
    model: nn.Module,
    images: Images,
    method: str | Method = "gradcam",
    targets: Targets = None,
    layers: Layers = None,
    *,
    fusion: str | None = None,
    relu: bool | None = None,
    smoothing: str | Sequence[str] = (),
    precision: Literal["full", "fast", "bf16"] = "full",
    batch_size: int | None = None,
    memory: int | str | None = None,
    differentiable: bool = False,
    interpolation: str = "bilinear",
    **options: Any,
) -> Explanation:
    """Show where a model looks.

    The model runs in eval mode, and is left as it was found (train or eval mode, gradients, hooks,
    statistics, random state). It may be frozen, in train mode, compiled, or under ``no_grad``. For
    most methods it runs once. The automatic choice of a layer runs one image more, once for a model
    and a size of images.

    Args:
        model: A classifier, or any module if targets says what is explained.
        images: ``(N, C, H, W)`` or ``(C, H, W)``, floats, preprocessed as the model wants them;
            brought to the model's device and dtype. Volumes and videos are ``(N, C, D, H, W)``. For
            a model that takes more than images: all its arguments, as a sequence or by name; what
            has N rows is one an image.
        method: A name (see `list_methods`), or a `Method` of your own.
        targets: What is explained: None for the predicted class, a class index for all images, one
            an image, ``(N, S)`` for several an image, a `Target` such as ``top_k(3)`` or
            ``contrast(3, 5)``, or a function from the model's output to scores ``(N,)``.
        layers: None or ``"auto"`` (see `auto_layer`), or what `resolve_layers` takes: a name, a
            Conv2d index, ``"first"``, ``"middle"``, ``"last"``, a module, or several of these. A
            layer that runs more than once is explained at its last call.
        fusion: How the maps of several layers, each divided by its maximum, become one: ``"mean"``,
            ``"max"``, ``"weighted"``: a mean with the weights 1, 2, … L in the order in which the
            layers ran, so that the deepest counts most, or ``"layercam"``: the maximum, the maps of
            shallow layers scaled by a tanh first (see `fedgaze.xai.maps.fuse`). None: what the
            method's paper does, for LayerCAM the last, else the mean.
        relu: Whether only what speaks for the target is kept; None for what the method's paper
            does. Without it maps are signed, and heatmaps in [-1, 1].
        smoothing: ``"augment"``: the mean of the maps of six versions of each image (mirrored or
            not, with 0.9, 1 and 1.1 of its values); ``"eigen"``: of weighted activations the first
            principal component instead of the sum over channels; or both.
        precision: ``"full"`` runs the model as it is. ``"fast"`` runs a copy with convolutions and
            BatchNorm fused, channels last, ``"bf16"`` that copy in bfloat16; see
            `fedgaze.xai.fast.prepare`. Where that gains nothing or is not sound, the next slower
            one runs, and `Explanation.precision` says why.
        batch_size: How many images, or variants of images, run at once. It is halved where memory
            runs out. None: where each image runs once all of them, on a CPU 8 photographs of 224 x
            224 pixels or as many smaller ones as make as much; else what fits into the memory.
        memory: How much a pass may take, in bytes or such as ``"512MiB"`` (what methods that
            run many variants take by themselves; on a CPU 128 MiB where there is no way back). What
            a single image needs is taken in any case, such as KPCA-CAM's matrix of positions.
        differentiable: Whether heatmaps, raw maps and scores keep their graph back to the
            parameters, and to images that ask for gradients, so that a map can be trained with.
        interpolation: How maps are brought to the size of the images: ``"bilinear"``,
            ``"bicubic"`` or ``"nearest"``.
        options: Of the method; see ``find_method(name).options``.

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
    found = method if isinstance(method, Method) else find_method(method)
    found.check_options(options)
    fusion = found.fusion if fusion is None else fusion
    _check_choice("fusion", fusion, FUSIONS)
    _check_choice("interpolation", interpolation, INTERPOLATIONS)
    _check_choice("precision", precision, PRECISIONS)
    smoothings = _read_smoothing(smoothing, found)
    budget = _read_budget(batch_size, memory, found)
    model = unwrap(model)
    # Looked for once: a walk over a ResNet-50 takes half a percent of its time.
    modules = dict(model.named_modules(remove_duplicate=False))
    named = plain_names(modules)
    check_model(model, named, found)
    if layers is not None and not found.layers:
        raise FedgazeError(f"{found.name} explains no layer; leave layers out, or use a CAM method")
    chosen = layer_names(named, layers) if found.layers else []
    if differentiable:
        _check_differentiable(found, precision)
    inputs = read_inputs(model, images)
    size = tuple(inputs.images.shape[2:])
    if len(size) == 3 and interpolation == "bicubic":
        raise FedgazeError("interpolation is 'bicubic'; for volumes allowed are bilinear, nearest")
    of_score = found.options_of_score(options)
    target = _read_target(targets, len(inputs), found, of_score)
    names = [auto_layer(model, inputs) if name is None else name for name in chosen]
    ran: str = precision
    if precision != "full":
        from fedgaze.xai.fast import prepare

        prepared = prepare(model, inputs, names, precision, found)
        model, ran = prepared.model, prepared.precision
        if prepared.reason is not None:
            ran = f"{ran}: {prepared.reason}"
        inputs = replace(inputs, images=prepared.images(inputs.images))
        modules = dict(model.named_modules(remove_duplicate=False))
        named = plain_names(modules)
    plan = Plan(
        model=model,
        parts=list(modules.values()),
        modules={name: named[name] for name in names},
        method=found,
        options={name: each for name, each in options.items() if name not in of_score},
        target=target,
        relu=found.relu if relu is None else relu,
        eigen="eigen" in smoothings,
        graph=differentiable,
        budget=budget,
    )
    how = _Shown(fusion, interpolation, ran)
    with outside_autocast(), torch.enable_grad() if differentiable else nullcontext():
        chunks = _outer_chunks(plan, inputs)
        work = _augmented if "augment" in smoothings else _once
        parts = list(chunks.over(len(inputs), lambda start, stop: work(plan, inputs, start, stop)))
        return _assembled(parts, plan, size, how)


def _once(plan: Plan, inputs: Inputs, start: int, stop: int) -> Part:
    rows = torch.arange(start, stop, device=inputs.images.device)
    return plan.part(inputs.take(start, stop), rows)


def _augmented(plan: Plan, inputs: Inputs, start: int, stop: int) -> Part:
    """The mean over versions of the images, all explained for what the unchanged ones show."""
    original = _once(plan, inputs, start, stop)
    same = replace(plan, target=original.scorer.fixed())
    flipped = replace(plan, target=original.scorer.fixed(width=inputs.images.shape[-1]))
    batch = inputs.take(start, stop)
    sums = {name: torch.zeros_like(each) for name, each in original.maps.items()}
    finite = original.finite
    rows = torch.arange(stop - start, device=inputs.images.device)
    for mirrored in (False, True):
        for factor in _BRIGHTNESS:
            pixels = batch.images * factor
            pixels = pixels.flip(-1) if mirrored else pixels
            version = flipped if mirrored else same
            part = version.part(replace(batch, images=pixels), rows)
            finite = finite & part.finite
            for name, each in part.maps.items():
                sums[name] = sums[name] + (each.flip(-1) if mirrored else each)
    versions = 2 * len(_BRIGHTNESS)
    maps = {name: each / versions for name, each in sums.items()}
    return replace(original, maps=maps, attributions=None, finite=finite)


class _Shown(NamedTuple):
    """What raw maps become, and what is told of it."""

    fusion: str
    interpolation: str
    precision: str


def _assembled(
    parts: Sequence[Part], plan: Plan, size: tuple[int, ...], how: _Shown
) -> Explanation:
    if all((kept := part.scorer.keep) is not None and not kept.any() for part in parts):
        raise FedgazeError(parts[0].scorer.nothing)
    keep = [part.scorer.keep for part in parts]

    def rows(each: Sequence[Tensor]) -> Tensor:
        """``(N, S, *)`` of each part as rows; parts may have different numbers of targets."""
        found = [
            tensor.flatten(0, 1) if kept is None else tensor[kept]
            for tensor, kept in zip(each, keep, strict=True)
        ]
        return found[0] if len(found) == 1 else torch.cat(found)

    per_layer = {name: rows([part.maps[name] for part in parts]) for name in parts[0].maps}
    maps = list(per_layer.values())
    extents = [extent(each) for each in maps]
    raw, known = maps[0], extents[0]
    if len(maps) > 1:
        raw = fuse(maps, how.fusion, how.interpolation, size)
        known = extent(raw)
    logits = _joined([part.scorer.logits for part in parts])
    classes = [each for part in parts if (each := part.scorer.classes) is not None]
    attributions = [each for part in parts if (each := part.attributions) is not None]
    finite = rows([part.finite for part in parts])
    return Explanation(
        heatmaps=to_heatmaps(raw, size, how.interpolation, known),
        raw=raw,
        per_layer=per_layer,
        attributions=rows(attributions) if attributions else None,
        images=rows(_numbered(parts)),
        targets=rows(classes) if classes else None,
        scores=rows([part.scorer.scores for part in parts]),
        logits=logits,
        predicted=predictions(logits),
        layers=tuple(per_layer) if plan.method.layers else (),
        method=plan.method.name,
        fusion=how.fusion,
        precision=how.precision,
        flags=_flags(extents, finite, max(part.calls for part in parts), plan.parts, len(parts)),
    )


def _numbered(parts: Sequence[Part]) -> list[Tensor]:
    """``(N, S)`` of each part: which of all images it is."""
    found: list[Tensor] = []
    start = 0
    for part in parts:
        finite = part.finite
        numbers = torch.arange(start, start + len(finite), device=finite.device)
        found.append(numbers[:, None].expand(finite.shape))
        start += len(finite)
    return found


def _joined(logits: Sequence[Tensor]) -> Tensor:
    """What the model said to all images; scores ``(N, S)`` may differ in their number."""
    if len(logits) == 1:
        return logits[0]
    widest = max(each.shape[1] for each in logits)
    return torch.cat(
        [F.pad(each, (0, widest - each.shape[1])) if each.dim() == 2 else each for each in logits]
    )


def _check_choice(what: str, value: str, allowed: Collection[str]) -> None:
    if value not in allowed:
        raise FedgazeError(
            f"{what} is {value!r}; allowed are {', '.join(allowed)}{nearest(str(value), allowed)}"
        )


def _read_smoothing(smoothing: str | Sequence[str], method: Method) -> tuple[str, ...]:
    wanted = (smoothing,) if isinstance(smoothing, str) else tuple(smoothing)
    for each in wanted:
        _check_choice("smoothing", each, SMOOTHINGS)
    if "eigen" in wanted and method.kind != "weights":
        raise FedgazeError(
            f"smoothing is 'eigen', which {method.name} has no use for: it does not weight channels"
        )
    return wanted


def _read_budget(batch_size: int | None, memory: int | str | None, method: Method) -> Budget:
    if batch_size is not None and batch_size < 1:
        raise FedgazeError(f"batch_size is {batch_size}; allowed is 1 and more")
    if memory is None:
        return Budget(batch_size)
    # Half for what is kept of the images, half for the variants of them that run meanwhile.
    return Budget(batch_size, max(1, read_bytes(memory) // (2 if method.kind == "run" else 1)))


def _check_differentiable(method: Method, precision: str) -> None:
    if not method.differentiable:
        allowed = ", ".join(each.name for each in list_methods() if each.differentiable)
        raise FedgazeError(f"maps of {method.name} cannot be trained with; allowed are {allowed}")
    if precision != "full":
        raise FedgazeError(f"precision is {precision!r}; maps to train with need 'full'")


def _read_target(
    targets: Targets, count: int, method: Method, options: Mapping[str, Any]
) -> Target:
    target = read_targets(targets, count)
    if method.score is None:
        return target
    if not isinstance(target, Classes):
        raise FedgazeError(f"{method.name} explains classes; allowed as targets are classes")
    return target.changed(partial(method.score, **options))


def _outer_chunks(plan: Plan, inputs: Inputs) -> Chunks:
    """How many images go through all of a method at once."""
    count, budget = len(inputs), plan.budget
    if count == 1:
        return Chunks(1)
    if budget.batch_size is None and budget.memory is None:
        if plan.method.kind == "run":
            return Chunks(min(count, _OUTER_BATCH))
        # Functions may know how many images there are, and so may layers.
        together = isinstance(plan.target, Function) or any(map(_asks_the_batch, plan.parts))
        if plan.graph or together or inputs.images.device.type != "cpu":
            return Chunks(count)
        return Chunks(max(_ON_CPU_IMAGES, _ON_CPU_NUMBERS // inputs.images[0].numel()))
    one = inputs.take(0, 1)
    first = torch.zeros(1, dtype=torch.long, device=inputs.images.device)
    # Not remembered: it depends on the targets, too, which are known when the model has run.
    found = budget.chunks(plan.model, None, lambda _: plan.probe(one, first))
    return Chunks(min(count, found.size))


def _flags(
    extents: Sequence[Extent],
    finite: Tensor,
    calls: int,
    modules: Sequence[nn.Module],
    batches: int,
) -> tuple[tuple[str, ...], ...]:
    zero = torch.stack([each.peak for each in extents]).amax(0) == 0
    flat = torch.stack([each.flat for each in extents]).all(0)
    columns = {
        "not_finite": ~finite,
        "no_positive_evidence": zero & finite,
        "constant": flat & ~zero,
    }
    if batches < len(finite) and any(map(_asks_the_batch, modules)):
        columns["batch_dependent"] = torch.ones_like(finite)
    if calls > 1:
        columns[f"last_of_{calls}_calls"] = torch.ones_like(finite)
    rows = torch.stack(list(columns.values()), dim=1).tolist()
    return tuple(tuple(flag for flag, on in zip(columns, row, strict=True) if on) for row in rows)


def _asks_the_batch(module: nn.Module) -> bool:
    """Whether a layer uses the statistics of the batch even in eval mode."""
    return isinstance(module, _BATCH_NORMS) and module.running_mean is None
