"""What work costs a machine: time, memory and traffic, as its own process sees them."""

import re
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import psutil
import torch
from flwr.app import RecordDict

__all__ = ["Meter", "carried_bytes", "read_system"]

_LIMIT = 2**63
_DEVICE = re.compile(r"[a-z]{1,16}(:\d{1,3})?")
_SECONDS = ("seconds", "cpu_seconds")
_COUNTS = (
    "memory_bytes",
    "peak_memory_bytes",
    "device_memory_bytes",
    "received_bytes",
    "sent_bytes",
    "threads",
)


class Meter:
    """Measures a piece of this process's work from the moment it is made.

    Args:
        device: Where the work is done; its memory is measured, too.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device
        if device is not None and device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self._began = time.perf_counter()
        self._cpu = time.process_time()

    def read(self) -> dict[str, float | int | str]:
        """The work so far.

        Returns:
            ``seconds``; ``cpu_seconds`` of all of the process's threads; ``memory_bytes``, which
            the process holds now, and ``peak_memory_bytes``, the most that it ever held (Unix
            only); of a device its name as ``device`` and, of CUDA, ``device_memory_bytes``: the
            most that tensors took during the work.
        """
        facts: dict[str, float | int | str] = {
            "seconds": round(time.perf_counter() - self._began, 3),
            "cpu_seconds": round(time.process_time() - self._cpu, 3),
        }
        now = 0
        with suppress(OSError, psutil.Error):  # where /proc is hidden from it
            facts["memory_bytes"] = now = psutil.Process().memory_info().rss
        if (peak := _peak()) is not None:
            facts["peak_memory_bytes"] = max(peak, now)  # Linux counts its peak with some delay
        if self._device is not None:
            facts["device"] = str(self._device)
            if self._device.type == "cuda":
                facts["device_memory_bytes"] = torch.cuda.max_memory_allocated(self._device)
        return facts


def _peak() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def carried_bytes(content: RecordDict) -> int:
    """Bytes of a message's weights and files, without names and what Flower wraps round them."""
    arrays = sum(
        len(array.data) for record in content.array_records.values() for array in record.values()
    )
    return arrays + sum(
        len(value)
        for record in content.config_records.values()
        for value in record.values()
        if isinstance(value, bytes)
    )


def read_system(said: Mapping[str, Any]) -> dict[str, float | int | str]:
    """What a client says of its machine, cut down to what can be: known names, sane values."""
    kept: dict[str, float | int | str] = {}
    for name in (*_SECONDS, *_COUNTS):
        value = said.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if 0 <= value < _LIMIT:  # which no NaN is
            kept[name] = float(value) if name in _SECONDS else int(value)
    device = said.get("device")
    if isinstance(device, str) and _DEVICE.fullmatch(device):
        kept["device"] = device
    return kept
