"""Where the classic API runs: what ``use_cuda`` asks for."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn

from fedgaze.xai.layers import unwrap
from fedgaze.xai.running import running

__all__ = ["on_cuda"]


@contextmanager
def on_cuda(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Have the model on CUDA, if that is wanted and there, and back on the CPU afterwards.

    A model that is on any other device already stays there.
    """
    inner = unwrap(model)
    devices = {each.device.type for each in chain(inner.parameters(), inner.buffers())}
    if not wanted or devices - {"cpu"} or not torch.cuda.is_available():
        yield
        return
    with running(inner):  # no other thread explains it while it is under way
        try:
            inner.to("cuda")
            yield
        finally:
            inner.to("cpu")
