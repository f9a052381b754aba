"""A stand-in for CUDA graphs on the CPU: it records the calls of torch's operators and replays them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainyard import rng_state
from trainyard.step.cuda_graph.graph import Uncapturable

aten = torch.ops.aten
WAITING = (
    aten._local_scalar_dense,
    aten.equal,
    aten.is_nonzero,
    aten.nonzero,
    aten.masked_select,
    aten._unique2,
)
"""Operators that, on CUDA, wait for the device."""


def waits(function: Any, args: Any) -> bool:
    by_mask = function.overloadpacket in (aten.index, aten.index_put, aten.index_put_) and any(
        index.dtype in (torch.bool, torch.uint8) for index in tree_leaves(args[1]) if index is not None
    )
    return by_mask or function.overloadpacket in WAITING


class Listening(TorchDispatchMode):
    """Notes an operator that waits."""

    reason: str | None = None

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if waits(function, args):
            self.reason = f"the code waits for the device ({function})"
        return function(*args, **(kwargs or {}))


class Recording(TorchDispatchMode):
    """Notes every call with its very tensors, and what tensors from outside held before they were first used."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.before: list[tuple[Tensor, Tensor]] = []
        self._known: dict[int, Tensor] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if waits(function, args):
            raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({function})")
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor) and id(tensor) not in self._known:
                self._known[id(tensor)] = tensor
                self.before.append((tensor, tensor.detach().clone()))
        result = function(*args, **kwargs)
        given = {id(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        for tensor in results:
            self._known[id(tensor)] = tensor
        aliases = [returned.alias_info for returned in function._schema.returns]
        if not any(alias is not None and not alias.is_write for alias in aliases):  # a view stays a view
            self.calls.append((function, args, kwargs, [r for r in results if id(r) not in given]))
        return result


class RecordedGraph:
    """Replays the operators on the same tensors: memory is static, and numbers are what they were when recorded.

    As with CUDA graphs nothing is done when work is recorded, and what waits for the device is refused.

    Attributes:
        captures, replays: how many there were.
    """

    def __init__(self) -> None:
        self.captures = 0
        self.replays = 0

    def warm_up(self, function: Callable[[], Any]) -> tuple[Any, str | None]:
        with Listening() as listening:
            result = function()
        return result, listening.reason

    def capture(self, function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        generators = [torch.default_generator, *rng_state.further(torch.device("cpu"))]
        drawn = [generator.get_state() for generator in generators]
        try:
            with Recording() as recording:
                result = function()
        except Exception as error:
            raise Uncapturable(str(error)) from error
        finally:
            with torch.no_grad():
                for tensor, before in reversed(recording.before):  # several may be views of one memory
                    tensor.copy_(before)
            for generator, state in zip(generators, drawn, strict=True):
                generator.set_state(state)
        self.captures += 1

        def replay() -> None:
            self.replays += 1
            with torch.no_grad():
                for call, args, kwargs, results in recording.calls:
                    found = [leaf for leaf in tree_leaves(call(*args, **kwargs)) if isinstance(leaf, Tensor)]
                    given = {id(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
                    for recorded, new in zip(results, [new for new in found if id(new) not in given], strict=True):
                        recorded.copy_(new)

        return replay, result

    def forget(self) -> None:
        """The memory is that of any tensors."""
