"""Optimizers of torch without the import of `torch._dynamo`, which takes a second.

The methods of `torch.optim.Optimizer` are wrapped, for `torch.compile` and for profilers, in functions that import
dynamo when they are first called. `functools.wraps` lets `inspect.unwrap` access the wrapped functions, which a
training that compiles no optimizer calls directly. This also saves the time of the wrappers, a seventh of the step time
of a small model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch.optim import Optimizer

from trainyard._torch_internals import may_have_step_hooks, unwrapped
from trainyard.optim.fused_adam import FusedAdam

_OURS = ("torch.optim.", "trainyard.optim.", "trainyard.fused.optim.")
_REGISTERS = ("register_step_pre_hook", "register_step_post_hook")


@contextmanager
def constructing() -> Iterator[None]:
    """Construct optimizers inside the block without dynamo."""
    wrapped = Optimizer.add_param_group
    Optimizer.add_param_group = unwrapped(wrapped)  # type: ignore[method-assign]
    try:
        yield
    finally:
        Optimizer.add_param_group = wrapped  # type: ignore[method-assign]


def method(optimizer: Optimizer, name: str) -> Callable[..., Any]:
    """Return `optimizer.<name>` without its wrappers if the class belongs to torch or Trainyard; otherwise, return it
    unchanged.

    Other classes may have wrapped their methods for a purpose.
    """
    kind = type(optimizer)
    if name in vars(optimizer) or not kind.__module__.startswith(_OURS):
        return getattr(optimizer, name)  # type: ignore[no-any-return]
    return partial(unwrapped(getattr(kind, name)), optimizer)


class UnwrappedStep:
    """The method `optimizer.step()` without its wrappers; call it with gradients disabled.

    The wrappers call the hooks registered on the optimizer itself. They are used again when there is a hook.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self._step: Callable[..., Any] = optimizer.step if may_have_step_hooks(optimizer) else _step(optimizer)
        for name in _REGISTERS:
            setattr(optimizer, name, partial(self._register, getattr(optimizer, name)))

    def __call__(self, *closure: Callable[[], Any]) -> None:
        self._step(*closure)

    def _register(self, register: Callable[..., Any], hook: Callable[..., Any]) -> Any:
        self._step = self.optimizer.step
        return register(hook)


def _step(optimizer: Optimizer) -> Callable[..., Any]:
    step = method(optimizer, "step")
    return FusedAdam(optimizer, step) if FusedAdam.takes(optimizer) else step
