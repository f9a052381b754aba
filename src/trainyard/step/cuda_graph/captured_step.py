"""Captured optimization step: one launch of a CUDA graph instead of one launch per kernel."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainyard import rng_state
from trainyard._torch_internals import foreach
from trainyard.data import Batch, Loader
from trainyard.data.resident_epoch import LazyBatch, ServesLazily
from trainyard.step.closure import ClosureStep
from trainyard.step.cuda_graph.capture_limits import CaptureLimits
from trainyard.step.cuda_graph.graph import CudaGraph, Graph, Uncapturable
from trainyard.step.cuda_graph.graph_hyperparameters import (
    GraphHyperparameters,
    graph_hyperparameters,
    uncaptured_update,
)
from trainyard.step.cuda_graph.graph_order import GraphOrder
from trainyard.step.cuda_graph.guards import ModuleGuards
from trainyard.step.cuda_graph.rate_table import Foresight
from trainyard.step.cuda_graph.static_inputs import signature_of, with_tensors
from trainyard.step.cuda_graph.static_outputs import StaticOutputs
from trainyard.step.group import GroupPosition
from trainyard.step.precision import Autocast, Precision
from trainyard.step.stacked import StackedScaledAutocast
from trainyard.step.step import AccumulatedStep, Step

log = logging.getLogger(__name__)

WARM_UP = 3
"""Number of steps of each kind that are run before capture, as torch's notes on CUDA graphs require."""

_SETTINGS = {"ScaledAutocast": "precision=fp16", "SkipNonFinite": "hook.nan_guard.action=skip"}
"""Settings, for users, that select a precision which decides whether the optimizer steps, by its class name."""


class CapturedStep(AccumulatedStep):
    """Step that is captured once for each shape of batch and then replayed; it has the interface of `step`.

    The first steps of each kind are run normally. Then forward, backward, clipping and the optimizer are captured. From
    then on, a step copies its batch to the inputs of the graph, copies changed numbers to the device, and launches the
    graph. A batch of resident rows that was not accessed is not copied, but gathered by the graph. The captured step
    performs the same arithmetic with the same kernels.

    If the step of the optimizer cannot be captured, only forward and backward are captured, and the optimizer steps
    after them. If
    nothing can be captured, or captures would not pay off, the step is run normally from then on (`refusal`). Both
    cases are logged once with the reason. A batch for which a hook replaces `clip` is run normally.

    Args:
        step: the step to capture; do not call it directly.
        graph: captures and replays.
        modules: all modules, by name, whose code `step` runs.

    Attributes:
        refusal: the reason why nothing is captured; None if steps are, or will be, captured.
    """

    warm_up = WARM_UP + 1  # every batch of a group is captured in the group after these

    def __init__(self, step: Step, graph: Graph, modules: Mapping[str, nn.Module]) -> None:
        super().__init__(
            step.train_step,
            step.optimizer,
            step.precision,
            step.clip,
            accumulate=step.accumulate,
            by=step.by,
            samples=step.samples_of,
            stacked=step.stacked,
        )
        foreach.resolve()
        self.refusal: str | None = None
        self._graph = graph
        self._device = self.parameters[0].device
        self._guards = ModuleGuards(modules, self._device)
        self._hyperparameters: GraphHyperparameters | None = None
        self._foresight: Foresight | None = None
        self._own_clip = self._other_clip = self.clip
        self._limits = CaptureLimits()
        self._uncaptured_update: str | None = None
        self._forget()

    def __call__(self, batch: Any, position: int, total: int) -> dict[str, Tensor]:
        if isinstance(batch, LazyBatch) and batch.is_gathered:
            batch = batch.gathered()  # as it is now
        if self.refusal is not None:
            return super().__call__(_plain(batch), position, total)
        tensors: list[Tensor] = []
        shape = batch.signature if isinstance(batch, LazyBatch) else signature_of(batch, tensors, self._device)
        self._look(shape)
        if self.refusal is not None:
            return super().__call__(_plain(batch), position, total)
        if self._is_measured():
            with self._placed():
                self._advance()
                outputs = super().__call__(_plain(batch), position, total)
        else:
            outputs = self._run(batch, tensors, shape, position, total)
        if self._hyperparameters is not None:
            self._hyperparameters.stepped()
        return outputs

    def _run(self, batch: Any, tensors: list[Tensor], shape: Hashable, position: int, total: int) -> dict[str, Tensor]:
        """Run a step that is captured or will be captured."""
        place = self.place(self.samples(batch), position, total)
        captured = self._captured.get((shape, place))
        if captured is None:
            seen = self._seen[shape, place] = self._seen.get((shape, place), 0) + 1
            if seen <= WARM_UP or not (place.alone or self._gradients):  # a group that was begun elsewhere has none yet
                return self._warm_up(_plain(batch), place, judge=seen >= WARM_UP)
            try:
                captured = self._captured[shape, place] = self._capture(batch, tensors, place)
            except Uncapturable as error:
                self._refuse(str(error))
                outputs = self._work(_plain(batch), place)
                return outputs | self._update() if place.last else outputs
        return self._replay(captured, batch, tensors, place)

    def batches_of(self, loader: Loader, epoch: int, start: int) -> Iterator[Batch]:
        if self.refusal is None and isinstance(loader, ServesLazily):
            return loader.lazy_batches(epoch, start)
        return super().batches_of(loader, epoch, start)

    def samples(self, batch: Any) -> int:
        if isinstance(batch, LazyBatch):
            return 1 if self.by == "batches" else batch.samples
        return super().samples(batch)

    def foresee(self, foresight: Foresight) -> None:
        """Read the learning rates from a table on the device, which `foresight` fills in advance."""
        self._foresight = foresight
        self._release_hyperparameters()
        self._forget()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._forget()

    def keep(self, index: Tensor) -> None:
        """Drop the graphs and the known shapes, which apply to all members; only the members at `index` continue."""
        super().keep(index)
        self._limits.forget_shapes()
        self._release_hyperparameters()
        self._forget()

    # -- what may be captured ------------------------------------------------------------------------------------------

    def _look(self, shape: Hashable | None) -> None:
        """Drop the graphs if something has changed that a graph cannot follow."""
        if (reason := self._limits.refusal(shape)) is not None:
            self._refuse(reason)
            return
        if self._begun and self._sizes != [len(group["params"]) for group in self.optimizer.param_groups]:
            self._release_hyperparameters()  # a hook has given the optimizer more parameters
            self._forget()
        if self._hyperparameters is not None:
            self._hyperparameters.refresh()
        if self._begun:
            of_model = self._guards.changed()
            of_optimizer = self._hyperparameters.changed() if self._hyperparameters is not None else None
            if of_model or of_optimizer or self.precision is not self._precision:
                in_vain = self._limits.dropped()
                self._forget()
                if in_vain and of_model:
                    self._refuse(f"{of_model} keeps changing")
                    return
                if in_vain and of_optimizer:
                    self._leave_update(f"{of_optimizer} keeps changing")
        if not self._begun:
            self._begin()

    def _begin(self) -> None:
        """Record the current state: graphs captured from here on are valid as long as it does not change."""
        self._begun = True
        self._sizes = [len(group["params"]) for group in self.optimizer.param_groups]
        self._guards.take()
        self._precision = self.precision
        if self._uncaptured_update is None:
            if type(self.precision) not in (Precision, Autocast, StackedScaledAutocast):
                name = type(self.precision).__name__
                name = _SETTINGS.get(name, name)
                self._leave_update(f"{name} decides outside of a graph whether the optimizer steps")
            elif (reason := uncaptured_update(self.optimizer)) is not None:
                self._leave_update(reason)
            else:
                self._hyperparameters = self._hyperparameters or graph_hyperparameters(
                    self.optimizer, self._device, self._foresight
                )
                self._hyperparameters.refresh()
                self._hyperparameters.take()

    def _forget(self) -> None:
        """Drop the graphs."""
        self._graph.forget()
        self._begun = False
        self._orders: dict[Hashable, GraphOrder] = {}
        self._captured: dict[tuple[Hashable, GroupPosition], _Captured] = {}
        self._seen: dict[tuple[Hashable, GroupPosition], int] = {}
        self._gradients: list[Tensor | None] = []

    def _refuse(self, reason: str) -> None:
        log.info("The step is not captured: %s.", reason)
        self.refusal = reason
        self._forget()
        self._release_hyperparameters()

    def _leave_update(self, reason: str) -> None:
        """Run the optimizer's step outside of the graphs from here on."""
        log.info("The step is captured without the step of the optimizer: %s.", reason)
        self._uncaptured_update = reason
        self._limits.pardon()
        self._release_hyperparameters()

    def _release_hyperparameters(self) -> None:
        if self._hyperparameters is not None:
            self._hyperparameters.release()
            self._hyperparameters = None

    def _is_measured(self) -> bool:
        """Return whether `clip` was replaced only for this batch; a replacement that is seen twice is permanent."""
        if self.clip is self._own_clip:
            return False
        stays, self._other_clip = self.clip is self._other_clip, self.clip
        if stays:
            self._own_clip = self.clip
            self._forget()
            self._begin()
        return not stays

    # -- one step ------------------------------------------------------------------------------------------------------

    def _work(self, batch: Any, place: GroupPosition) -> dict[str, Tensor]:
        """Run the part of a step that is captured."""
        self._advance()
        outputs = self.backward(self.precision.forward(self.train_step, batch), place)
        if place.last and self._hyperparameters is not None:
            with self._placed():
                outputs |= self._update()
        return outputs

    def _advance(self) -> None:
        """Move the numbers of this step to the tensors that the optimizer reads."""
        if self._hyperparameters is not None:
            self._hyperparameters.advance()

    def _placed(self) -> AbstractContextManager[None]:
        """Return a context in which the optimizer steps as in a graph, if its step is captured."""
        return nullcontext() if self._hyperparameters is None else self._hyperparameters.placed()

    def _warm_up(self, batch: Any, place: GroupPosition, *, judge: bool) -> dict[str, Tensor]:
        """Run a warm-up step before the capture; the last of these steps decides whether a capture is possible."""
        drawn = rng_state.drawn() if judge else None
        outputs, reason = self._graph.warm_up(lambda: self._work(batch, place))
        if place.last and self._hyperparameters is None:
            outputs |= self._update()
        if not place.last and not self._gradients:
            grads = [parameter.grad for parameter in self.parameters]
            self._gradients = [None if grad is None else torch.zeros_like(grad) for grad in grads]
        if judge:
            changed = self._guards.changed()
            reason = reason or self._elsewhere(outputs)
            if changed is not None:
                reason = f"the model's code changes {changed}"
            elif drawn != rng_state.drawn():
                reason = "the step draws random numbers on the CPU"
            if reason is not None:
                self._refuse(reason)
        return outputs

    def _capture(self, batch: Any, tensors: list[Tensor], place: GroupPosition) -> _Captured:
        inputs = [tensor.clone() for tensor in tensors]
        if isinstance(batch, LazyBatch):
            order = self._orders.setdefault(batch.epoch.source, GraphOrder(batch.epoch))
            order.warm_up(batch)
        else:
            batch = with_tensors(batch, iter(inputs))
        before = [parameter.grad for parameter in self.parameters]
        if place.alone:
            self._set_gradients([None] * len(before))
        else:
            self._gather_gradients(place)

        def work() -> StaticOutputs:
            if place.first and not place.last:
                foreach.zero_([grad for grad in self._gradients if grad is not None])
            outputs = self._work(order.gather(batch) if isinstance(batch, LazyBatch) else batch, place)
            if (reason := self._elsewhere(outputs)) is not None:
                raise Uncapturable(reason)
            return StaticOutputs(outputs)

        try:
            replay, outputs = self._graph.capture(work)
            gradients = [parameter.grad for parameter in self.parameters]
        finally:
            self._set_gradients(before)
        return _Captured(inputs, replay, outputs, gradients)

    def _replay(
        self, captured: _Captured, batch: Any, tensors: list[Tensor], place: GroupPosition
    ) -> dict[str, Tensor]:
        if isinstance(batch, LazyBatch):
            self._orders[batch.epoch.source].refresh(batch)
        else:
            foreach.copy_(captured.inputs, tensors)
        if not place.alone:
            self._gather_gradients(place)
        captured.replay()
        if isinstance(batch, LazyBatch):
            self._orders[batch.epoch.source].stepped(batch)
        self._limits.replays += 1
        outputs = captured.outputs.read()
        if place.last:
            if self._hyperparameters is None:
                self._set_gradients(captured.gradients)
                outputs |= self._update()
            elif not place.alone:
                self._set_gradients([None] * len(self.parameters))
        return outputs

    def _elsewhere(self, outputs: Mapping[str, Tensor]) -> str | None:
        """Return why outputs that are not on the device cannot be captured: replays do not update them."""
        names = [name for name, value in outputs.items() if value.device != self._device]
        return f"the output {names[0]!r} is on {outputs[names[0]].device}, not on {self._device}" if names else None

    def _gather_gradients(self, place: GroupPosition) -> None:
        """Set the gradients of the parameters to the tensors to which the graphs of a group of batches add."""
        for parameter, gradient in zip(self.parameters, self._gradients, strict=True):
            if gradient is not None and parameter.grad is not gradient:
                if parameter.grad is not None:
                    gradient.copy_(parameter.grad)
                elif not place.first:
                    gradient.zero_()
                parameter.grad = gradient

    def _set_gradients(self, gradients: list[Tensor | None]) -> None:
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient


@dataclass(frozen=True)
class _Captured:
    """A captured step of one kind.

    Attributes:
        inputs: the tensors of the batch that the graph reads; none if the graph gathers them.
        replay: the function that does the work.
        outputs: results of the step.
        gradients: the gradient of each parameter after the graph.
    """

    inputs: list[Tensor]
    replay: Callable[[], None]
    outputs: StaticOutputs
    gradients: list[Tensor | None]


def _plain(batch: Any) -> Any:
    """Return a batch that can be passed to a model."""
    return batch.gathered() if isinstance(batch, LazyBatch) else batch


def captured(step: Step, modules: Mapping[str, nn.Module], device: torch.device, refusal: str | None) -> Step:
    """Return `step`, captured if possible; otherwise, log the reason.

    Args:
        modules: all modules, by name, whose code `step` runs.
        device: a CUDA device.
        refusal: the reason why it cannot be captured, if there is one outside the step.
    """
    if refusal is None and isinstance(step, ClosureStep):
        refusal = "the optimizer evaluates the loss itself"
    if refusal is None and type(step) not in (Step, AccumulatedStep):
        refusal = "several optimizers take turns"
    if refusal is not None:
        log.info("The step is not captured: %s.", refusal)
        return step
    return CapturedStep(step, CudaGraph(device), modules)
