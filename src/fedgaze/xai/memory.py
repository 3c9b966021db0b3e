"""Memory: how much a run takes, and how many images go into one."""

import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedgaze.errors import FedgazeError

__all__ = [
    "DEFAULT_MEMORY",
    "Budget",
    "Chunks",
    "is_out_of_memory",
    "peak_bytes",
    "read_bytes",
]

T = TypeVar("T")

DEFAULT_MEMORY = 512 * 2**20

_COSTS: weakref.WeakKeyDictionary[nn.Module, dict[tuple[Any, ...] | None, int]] = (
    weakref.WeakKeyDictionary()
)


def read_bytes(memory: int | str) -> int:
    """Read an amount of memory: a number of bytes, or with a unit.

    Raises:
        FedgazeError: It is none.

    >>> read_bytes("512MiB")
    536870912
    """
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        found = int(TypeAdapter(ByteSize).validate_python(memory))
    except ValidationError:
        found = 0
    if found < 1:
        raise FedgazeError(f"memory is {memory!r}; allowed is a size such as '512MiB' or '2GB'")
    return found


def peak_bytes(run: Callable[[], object]) -> int:
    """Call a function and count the most bytes of tensors, made by it, that lived at one time."""
    with _Watch() as watch:
        run()
    return int(watch.peak)


class _Watch(TorchDispatchMode):
    """Counts the storages that operations return, until nobody holds them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak: int = 0
        self._live: dict[int, int] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing is compiled in here; to say so to the compiler, it would be imported: 4 seconds.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = set(map(_identity, _storages((args, kwargs))))
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            identity = _identity(storage)
            if identity not in given and identity not in self._live:
                self._live[identity] = storage.nbytes()
                weakref.finalize(storage, self._live.pop, identity, None)
        self.peak = max(self.peak, sum(self._live.values()))
        return result


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _identity(storage: torch.UntypedStorage) -> int:
    return int(storage._cdata)  # noqa: SLF001 - of empty storages, data_ptr is the same


class Chunks:
    """Cuts work into chunks, and into smaller ones where memory runs out.

    Args:
        size: How many at once.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def over(self, count: int, work: Callable[[int, int], T]) -> Iterator[T]:
        """Do the work from start to stop, for chunks that cover 0 to count.

        Raises:
            FedgazeError: Memory runs out for a single one.
        """
        start = 0
        while start < count:
            stop = min(start + self.size, count)
            try:
                result = work(start, stop)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if self.size == 1:
                    raise FedgazeError(
                        "there is not enough memory for a single image; use smaller images, or "
                        "another device"
                    ) from error
                result = None
            if result is None:
                # Out of the except block, which holds what filled the memory.
                self.size = max(1, (stop - start) // 2)
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                continue
            yield result
            start = stop


class Budget(NamedTuple):
    """How much may run at once: so many images, or as many as fit into so many bytes."""

    batch_size: int | None = None
    memory: int | None = None

    def chunks(
        self,
        model: nn.Module,
        key: tuple[Any, ...] | None,
        run: Callable[[int], object],
        most: int = 1,
    ) -> Chunks:
        """Find out how many variants go into one pass.

        Args:
            model: The model.
            key: What is run; the bytes that one variant takes are remembered for it. None where
                they are not to be.
            run: Runs so many variants.
            most: Where variants share much of what one takes, more than one are run to see it, so
                many at most.
        """
        if self.batch_size is not None:
            return Chunks(self.batch_size)
        # An eighth is left to what libraries take unseen.
        memory = (self.memory or DEFAULT_MEMORY) * 7 // 8
        costs = {} if key is None else _COSTS.setdefault(model, {})
        if key not in costs:
            count, more = 0, 1
            # So many as surely fit, by what is known so far.
            while more > 2 * count:
                count = more
                costs[key] = max(1, peak_bytes(partial(run, count)) // count)
                more = min(memory // costs[key], most)
        return Chunks(max(1, memory // costs[key]))


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out."""
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)
