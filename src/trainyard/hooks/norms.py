"""Norms hook: norms of gradients and weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trainyard.checks import boolean, integer
from trainyard.distributed.shares import whole
from trainyard.runner import Runner, read
from trainyard.runner.hook import Hook
from trainyard.step.clip import NoClip


class Norms(Hook):
    """Records the 2-norms of all gradients (`norm/grad`) and of all trained weights (`norm/param`) at intervals.

    Gradients are measured when they are complete: over all accumulated batches, unscaled, and before clipping. Weights
    are measured before the update. If the iteration of a point does not end with an optimizer step, the next step is
    used.

    Args:
        interval: iterations between two points; each point waits for the device.
        by_module: also record the norms of each module, `norm/grad/<module>`, at the outermost level with several
            modules.
    """

    priority = "NORMAL"
    stackable = True

    def __init__(self, interval: int = 50, by_module: bool = False) -> None:
        self.interval = integer("interval", interval, at_least=1)
        self.by_module = boolean("by_module", by_module)
        self._due = False
        self._measure: _Measure | None = None

    def before_train_epoch(self, runner: Runner) -> None:  # between two, parameters may be unfrozen
        # A stacked model has its members' names, with slashes instead of dots.
        named = {name.replace("/", "."): weight for name, weight in runner.model.named_parameters()}
        self._modules = _grouped({name: weight for name, weight in named.items() if weight.requires_grad})

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any) -> None:
        self._due = self._due or (runner.iter + 1) % self.interval == 0
        if self._due:
            self._measure = _Measure(runner.step.clip, self._modules, len(runner.members))
            runner.step.clip = self._measure

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        if self._measure is None:
            return
        measure, self._measure = self._measure, None
        runner.step.clip = measure.clip
        norms = measure.norms(self.by_module)
        if not norms:
            return
        self._due = False
        for member, values in zip(runner.members, read(norms, len(runner.members)), strict=True):
            member.record(values, step=runner.iter, epoch=runner.epoch)

    def state_dict(self, member: int = 0) -> dict[str, Any]:
        return {"due": self._due}

    def load_state_dict(self, state: dict[str, Any], member: int = 0) -> None:
        self._due = state["due"]


class _Measure(NoClip):
    """Measures the norms immediately before clipping, for one iteration, because only then are the gradients complete.

    With several optimizers, it is called for each of them, with its parameters.
    """

    def __init__(self, clip: NoClip, modules: Mapping[str, Sequence[Tensor]], members: int) -> None:
        self.clip = clip
        self.modules = modules
        self.members = members
        self._grads: dict[int, Tensor] = {}
        self._params: dict[int, Tensor] = {}

    def __call__(self, parameters: Sequence[Tensor]) -> dict[str, Tensor]:
        for weight in parameters:
            if weight.grad is not None:
                self._grads[id(weight)] = self._norm(weight.grad)
            self._params[id(weight)] = self._norm(weight.detach())
        return self.clip(parameters)

    def norms(self, by_module: bool) -> dict[str, Tensor]:
        """Return the norms by name, `[members]`; empty if no optimizer has stepped."""
        found: dict[str, Tensor] = {}
        for kind, taken in (("grad", self._grads), ("param", self._params)):
            parts = {
                module: torch.linalg.vector_norm(torch.stack(norms), dim=0)
                for module, weights in self.modules.items()
                if (norms := [taken[id(weight)] for weight in weights if id(weight) in taken])
            }
            if parts:
                found[f"norm/{kind}"] = torch.linalg.vector_norm(torch.stack(list(parts.values())), dim=0)
                found |= {f"norm/{kind}/{module}": norm for module, norm in parts.items() if by_module}
        return found

    def _norm(self, tensor: Tensor) -> Tensor:
        """Return the norm as `[K]`, of a stack `[K, ...]`, or of one member's tensor."""
        if tensor.is_sparse:
            tensor = tensor.coalesce().values()
        rows = tensor.reshape(self.members, tensor.numel() // self.members)
        norm: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.promote_types(tensor.dtype, torch.float32))
        return whole(norm)


def _grouped(named: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
    """Group tensors by the module to which they belong, one level below the deepest module that contains all."""
    paths = [name.split(".")[:-1] for name in named]
    depth = 1
    while paths and len(paths[0]) >= depth and all(path[:depth] == paths[0][:depth] for path in paths):
        depth += 1
    modules: dict[str, list[Tensor]] = {}
    for path, (name, tensor) in zip(paths, named.items(), strict=True):
        modules.setdefault(".".join(path[:depth]) or name, []).append(tensor)
    return modules
