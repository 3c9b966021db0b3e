"""Asking: a model that is run again and again on what is made of images."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import torch
from torch import nn

from fedgaze.errors import FedgazeError
from fedgaze.xai.classes import read_targets
from fedgaze.xai.inputs import Images, read_inputs
from fedgaze.xai.layers import unwrap
from fedgaze.xai.memory import Budget, read_bytes
from fedgaze.xai.runner import Runner
from fedgaze.xai.running import outside_autocast
from fedgaze.xai.targets import Scorer, Targets

__all__ = ["open_runner"]


@contextmanager
def open_runner(
    model: nn.Module,
    images: Images,
    targets: Targets = None,
    *,
    precision: Literal["full", "fast"] = "full",
    batch_size: int | None = None,
    memory: int | str | None = None,
) -> Iterator[Runner]:
    """Ask a model about images and about variants of them, a chunk at a time.

    While it is open the model is in eval mode and nobody else explains it; afterwards it is as it
    was. This is what methods of the kind ``"run"`` are given, and the metrics of `fedgaze.measure`.

    Args:
        model: As for `explain`.
        images: As for `explain`.
        targets: As for `explain`: whose scores are asked for.
        precision: ``"fast"`` asks a copy that says the same to 1e-4; see `explain`.
        batch_size: How many variants run at once; None for what fits into the memory.
        memory: As for `explain`.

    Yields:
        The runner.

    Raises:
        FedgazeError: An argument cannot be used.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> images = torch.rand(3, 1, 2, 2)
    >>> with open_runner(model, images, 1) as runner:
    ...     runner.scores(lambda n, v: images[n] * v.view(-1, 1, 1, 1), count=5).shape
    torch.Size([3, 1, 5])
    """
    if precision not in {"full", "fast"}:
        raise FedgazeError(f"precision is {precision!r}; allowed are full, fast")
    if batch_size is not None and batch_size < 1:
        raise FedgazeError(f"batch_size is {batch_size}; allowed is 1 and more")
    budget = Budget(batch_size, None if memory is None else read_bytes(memory))
    model = unwrap(model)
    inputs = read_inputs(model, images)
    target = read_targets(targets, len(inputs))
    if precision == "fast":
        from fedgaze.xai.fast import prepare

        prepared = prepare(model, inputs, (), "fast")
        model = prepared.model
        inputs = replace(inputs, images=prepared.images(inputs.images))
    rows = torch.arange(len(inputs), device=inputs.images.device)
    with outside_autocast(), Runner(model, inputs, Scorer(target, rows), {}, budget) as runner:
        yield runner
