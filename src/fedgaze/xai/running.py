"""Running a model with hooks and leaving it as it was found."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from fedgaze.xai.tokens import patch_layers

__all__ = ["frozen", "is_compiled", "lock_of", "running", "twice_differentiable"]

Hook = Callable[[nn.Module, Any, Any], Any]

_AUTOCAST = ("cpu", "cuda", "mps", "xpu")

_LOCKS: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_LOCKS_LOCK = threading.Lock()
_STANCE_LOCK = threading.RLock()
_SURROUNDING = threading.local()
_KERNEL_LOCK = threading.RLock()


@contextmanager
def running(
    model: nn.Module,
    hooks: Iterable[tuple[nn.Module, Hook]] = (),
    *,
    patches: Hook | None = None,
    parts: Sequence[nn.Module] | None = None,
) -> Iterator[Callable[..., Any]]:
    """Give a way to run the model in eval mode with forward hooks on some modules.

    Afterwards, also after an exception, hooks, train or eval mode of every module, the random state
    and the images are as they were. One lock a model keeps explanations in several
    threads apart; the hooks are silent for other threads, and outside the forward pass (when
    checkpointed parts are recomputed).

    Args:
        model: Any module.
        hooks: Modules with what to call after each ran.
        patches: What to call, in each forward pass and before other hooks, after the first of
            `patch_layers` ran.
        parts: All modules of the model, if the caller has them: looking for them takes time.

    Yields:
        From the model's arguments to its output, in the gradient mode of the caller.
    """
    listening = 0

    def guarded(hook: Hook) -> Hook:
        def fire(module: nn.Module, inputs: Any, output: Any) -> Any:
            return hook(module, inputs, output) if listening == threading.get_ident() else None

        return fire

    with ExitStack() as stack:
        stack.enter_context(lock_of(model))
        modules = list(model.modules()) if parts is None else parts
        # Nothing made in inference mode can have gradients later; to leave it turns them on.
        wanted = torch.is_grad_enabled()
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.set_grad_enabled(wanted))
        stack.enter_context(_evaluating(modules))
        stack.enter_context(_uncompiled(modules))
        for module, hook in hooks:
            if isinstance(module, torch.jit.ScriptModule):
                continue  # takes no hooks; who waits for them says that it did not run
            stack.callback(module.register_forward_hook(guarded(hook)).remove)
        call = _without_inference_tensors(model, modules)
        strided = [] if patches is None else patch_layers(modules)

        devices: set[torch.device] = set()

        def cloned(tensor: Tensor) -> Tensor:
            if tensor.is_cuda:
                devices.add(tensor.device)
            return tensor.clone()

        def forward(*args: Any, **kwargs: Any) -> Any:
            nonlocal listening
            # Clones: some models change their input in place.
            args, kwargs = tree_map_only(Tensor, cloned, (args, kwargs))
            first = nullcontext() if patches is None else _first(strided, patches, guarded)
            with torch.random.fork_rng(devices), _autocast_again(), first:
                listening = threading.get_ident()
                try:
                    return call(*args, **kwargs)
                finally:
                    listening = 0

        yield forward


@contextmanager
def _first(
    modules: Iterable[nn.Module], hook: Hook, guarded: Callable[[Hook], Hook]
) -> Iterator[None]:
    """Call a hook before others of the first of some modules that runs."""
    with ExitStack() as stack:

        def fire(module: nn.Module, inputs: Any, output: Any) -> None:
            stack.close()  # the others need not be asked
            hook(module, inputs, output)

        for module in modules:
            stack.callback(module.register_forward_hook(guarded(fire), prepend=True).remove)
        yield


@contextmanager
def outside_autocast() -> Iterator[None]:
    """Let an autocast that surrounds the caller hold for models that run, and for nothing else.

    Sums over maps that it would make in half precision have few digits left.
    """
    kinds = [kind for kind in _AUTOCAST if torch.amp.is_autocast_available(kind)]
    kinds = [kind for kind in kinds if torch.is_autocast_enabled(kind)]
    if not kinds:
        yield
        return
    before = _casts()
    cache = torch.is_autocast_cache_enabled()
    _SURROUNDING.casts = [
        partial(torch.autocast, kind, torch.get_autocast_dtype(kind), cache_enabled=cache)
        for kind in kinds
    ]
    try:
        with ExitStack() as stack:
            for kind in kinds:
                stack.enter_context(torch.autocast(kind, enabled=False))
            yield
    finally:
        _SURROUNDING.casts = before


@contextmanager
def _autocast_again() -> Iterator[None]:
    with ExitStack() as stack:
        for cast in _casts():
            stack.enter_context(cast())
        yield


def _casts() -> Sequence[Callable[[], torch.autocast]]:
    """The autocasts that `outside_autocast` left."""
    found: Sequence[Callable[[], torch.autocast]] = getattr(_SURROUNDING, "casts", ())
    return found


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Let no parameter ask for gradients."""
    # The flag of a tensor made in inference mode could not be put back.
    asking = [p for p in model.parameters() if p.requires_grad and not p.is_inference()]
    try:
        for parameter in asking:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_()


@contextmanager
def twice_differentiable(wanted: bool) -> Iterator[None]:
    """Let attention run, if that is wanted, in a kernel whose gradients have gradients.

    The fused ones have none. The choice belongs to the whole process, hence the lock.
    """
    if not wanted:
        yield
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with _KERNEL_LOCK, sdpa_kernel(SDPBackend.MATH):
        yield


def lock_of(model: nn.Module) -> threading.RLock:
    """The lock that is held while a model is explained."""
    with _LOCKS_LOCK:
        return _LOCKS.setdefault(model, threading.RLock())


@contextmanager
def _evaluating(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Eval mode. Flags are set directly: people override `train()` to keep parts in eval mode."""
    training = [module for module in modules if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _uncompiled(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let compiled parts run as they are written: hooks added after compilation do not fire.

    The stance belongs to the whole process, hence the lock, and the module that sets it takes
    seconds to import, hence the search for a part that needs it.
    """
    if any(is_compiled(module) for module in modules):
        with _STANCE_LOCK, torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield


def is_compiled(module: nn.Module) -> bool:
    """Whether a module is one that ``torch.compile`` made, or was compiled in place."""
    in_place = getattr(module, "_compiled_call_impl", None) is not None
    return in_place or type(module).__name__ == "OptimizedModule"


def _without_inference_tensors(
    model: nn.Module, modules: Iterable[nn.Module]
) -> Callable[..., Any]:
    """The model, or, where parts of it were made in inference mode, the model with clones of them.

    Autograd keeps weights for the way back, and refuses those made in inference mode.
    """
    # Module by module: naming all parameters takes half a percent of a ResNet-50's time.
    tensors: list[Tensor | None] = []
    for module in modules:
        tensors += module._parameters.values()  # noqa: SLF001
        tensors += module._buffers.values()  # noqa: SLF001
    if not any([tensor.is_inference() for tensor in tensors if tensor is not None]):  # noqa: C419
        return model
    named = chain(model.named_parameters(), model.named_buffers())
    clones = {name: tensor.clone() for name, tensor in named if tensor.is_inference()}
    return lambda *args, **kwargs: torch.func.functional_call(model, clones, args, kwargs)
