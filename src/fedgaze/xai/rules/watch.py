"""Watch: every function that a model runs is seen, and some are put in the place of others."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import CheckpointError

from fedgaze.errors import FedgazeError

__all__ = ["Call", "Watch", "ancestors", "depends"]

_SEEN = "seen by fedgaze"


@dataclass(frozen=True)
class Call:
    """A function of PyTorch that is about to run.

    Attributes:
        func: It.
        args: Its positional arguments.
        kwargs: Its other arguments.
        name: Its name, the same for functions, methods and variants in place: ``"relu"``.
        in_place: Whether it writes into its first argument.
    """

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    name: str
    in_place: bool

    @classmethod
    def of(cls, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Self:
        """Read a call."""
        name = getattr(func, "__name__", type(func).__name__)
        in_place = bool(kwargs.get("inplace", False))
        if name.endswith("_") and not name.endswith("__"):
            name, in_place = name[:-1], True
        return cls(func, args, kwargs, name, in_place)

    def run(self) -> Any:
        """Run it as it is."""
        return self.func(*self.args, **self.kwargs)

    def at(self, tensor: Tensor) -> Tensor:
        """Run it on another tensor, which it does not change, as its first argument."""
        tensor = tensor.clone() if self.in_place else tensor
        if self.args:
            result: Tensor = self.func(tensor, *self.args[1:], **self.kwargs)
        else:
            result = self.func(**{**self.kwargs, "input": tensor})
        return result

    def get(self, index: int, name: str, default: Any = None) -> Any:
        """An argument by its place or its name."""
        return self.args[index] if index < len(self.args) else self.kwargs.get(name, default)

    @property
    def first(self) -> Any:
        """Its first argument."""
        return self.args[0] if self.args else self.kwargs["input"]

    def tensors(self) -> list[Tensor]:
        """All tensors among its arguments."""
        leaves = tree_leaves((self.args, self.kwargs))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


class Watch(TorchFunctionMode, ABC):
    """A mode in which functions can get another way back.

    PyTorch hands every function to it, before it runs: those of modules, of
    `torch.nn.functional`, methods of tensors, operators; also those in place. Nothing of the model
    is touched, and other threads do not notice. Use it as a context around forward and backward.
    """

    def __init__(self) -> None:
        super().__init__()
        self._began = False

    @abstractmethod
    def replace(self, call: Call) -> Any:
        """Give the result, with another way back, or None for a call that goes its own way."""

    @abstractmethod
    def check_unseen(self, node: Node) -> bool:
        """Judge a node of the graph that no seen function made; return whether to look below it.

        Raises:
            FedgazeError: It should have been seen.
        """

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the context."""
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        if isinstance(error, CheckpointError):
            raise FedgazeError(
                "a checkpointed part of the model runs again on the way back, and not by the same "
                "rules; switch its gradient checkpointing off"
            ) from error

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Called by PyTorch, which takes the mode off the stack meanwhile."""
        call = Call.of(func, args, kwargs or {})
        given = [tensor for tensor in call.tensors() if depends(tensor)]
        if not given:
            return self.constant(call)
        if call.func in _WAYS_BACK:
            return call.run()
        if self._began:
            for tensor in given:
                self._check(tensor)
        else:
            self._began = True
            _mark(given)  # the image, wherever it comes from
        result = self.replace(call)
        if result is None:
            result = call.run()
        elif call.in_place and result is not call.first:
            result = call.first.copy_(result)
        _mark(tree_leaves(result))
        return result

    def constant(self, call: Call) -> Any:
        """Run what does not depend on the image."""
        return call.run()

    def _check(self, tensor: Tensor) -> None:
        def further(node: Node) -> bool:
            return _SEEN not in _notes(node) and self.check_unseen(node)

        for _ in ancestors(tensor, further):
            pass


_WAYS_BACK = {torch.autograd.grad, torch.autograd.backward, Tensor.backward}


def _mark(values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, Tensor) and value.grad_fn is not None:
            _notes(value.grad_fn)[_SEEN] = True


def _notes(node: Node) -> dict[Any, Any]:
    """What anybody writes on a node; PyTorch declares it as a method, and it is an attribute."""
    notes: Any = node.metadata
    found: dict[Any, Any] = notes
    return found


def depends(value: Any) -> bool:
    """Whether something is a tensor that depends on the image: it has a way back, or is it."""
    return isinstance(value, Tensor) and value.requires_grad and not isinstance(value, nn.Parameter)


def ancestors(tensor: Tensor, further: Callable[[Node], bool]) -> Iterator[Node]:
    """Nodes of the graph that led to a tensor, the nearest first along each way.

    Args:
        tensor: A tensor.
        further: Whether to go on to what a node was made from.
    """
    met: set[Node] = set()
    stack = [tensor.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in met:
            continue
        met.add(node)
        yield node
        if further(node):
            stack += [before for before, _ in node.next_functions]
