"""Captured evaluation of a batch: predictions and metric sums as one CUDA graph for each batch shape."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainyard import rng_state
from trainyard._torch_internals import foreach
from trainyard.metrics import Metric
from trainyard.step.cuda_graph.capture_limits import CaptureLimits
from trainyard.step.cuda_graph.graph import Graph, Uncapturable
from trainyard.step.cuda_graph.guards import PLAIN, ModuleGuards
from trainyard.step.cuda_graph.static_inputs import signature_of, with_tensors

WARM_UP = 2
"""Number of batches of each shape that are evaluated before capture, because the first may initialize something."""
NOTHING = -0.0
"""The number to which any other number can be added without changing it, including the sign of a zero."""

Predict = Callable[[Any], Any]
Sums = dict[str, Tensor]


class CapturedEvaluation:
    """Evaluation of batches that is captured once for each shape and then replayed.

    The first batches of each shape are evaluated normally. Then, the prediction is captured, together with the sums
    that `process` of each metric adds to its state. The sums of a pass over a set are in tensors that the graphs share;
    they become the state of the metrics when the pass ends, or when other code needs it. They are bit-identical to the
    sums of the metrics.

    A metric that cannot be captured is processed after the replay. If the prediction cannot be captured, or captures
    would not pay off, batches are evaluated normally from then on (`refusal`). Both cases are logged with the reason.

    Args:
        graph: captures and replays.
        device: the device of the model.
        tell: logs a message.

    Attributes:
        refusal: the reason why nothing is captured; None if batches are, or will be, captured.
        left_out: the names of the metrics that are processed outside of the graphs.
    """

    def __init__(self, graph: Graph, device: torch.device, tell: Callable[[str], None]) -> None:
        foreach.resolve()
        self.refusal: str | None = None
        self.left_out: set[str] = set()
        self._graph = graph
        self._device = device
        self._tell = tell
        self._modules: Mapping[str, nn.Module] = {}
        self._metrics: Mapping[str, Metric] = {}
        self._limits = CaptureLimits()
        self._ahead = self._begun = False
        self._forget()

    def begin(
        self, predict: Predict, metrics: Mapping[str, Metric], modules: Mapping[str, nn.Module], *, watched: bool
    ) -> None:
        """Begin a pass over a set; the metrics have been reset.

        Args:
            predict: the function from a batch to predictions, which depends only on the modules.
            metrics: the metrics, by name.
            modules: all modules, by name, whose code `predict` runs.
            watched: whether other code sees predictions, or the metrics, between two batches.
        """
        self._predict = predict
        self._watched = watched
        self._ahead = False
        if not _are_same(modules, self._modules) or not _are_same(metrics, self._metrics):
            self._modules, self._metrics = dict(modules), dict(metrics)
            self._guards = ModuleGuards(self._modules, self._device)
            self._forget()
            for name, metric in self._metrics.items():
                if not metric.capturable:
                    self._leave_out(name, f"{type(metric).__name__} is not marked as capturable")

    def __call__(self, batch: Any) -> Any:
        """Evaluate a batch.

        Returns:
            The predictions, which later batches do not change; None if no other code needs them.
        """
        tensors: list[Tensor] = []
        shape: Hashable | None = None
        if self.refusal is None:
            shape = signature_of(batch, tensors, self._device)
            self._look(shape)
        captured = self._captured.get(shape)
        if captured is None and self.refusal is None:
            seen = self._seen[shape] = self._seen.get(shape, 0) + 1
            if seen <= WARM_UP:
                return self._warm_up(batch, judge=seen == WARM_UP)
            try:
                captured = self._captured[shape] = self._capture(batch, tensors)
            except Uncapturable as error:
                self._refuse(str(error))
        return self._run(batch) if captured is None else self._replay(captured, batch, tensors)

    def end(self) -> None:
        """End the pass: the sums become the metrics' state."""
        self._store()

    # -- what may be captured ------------------------------------------------------------------------------------------

    def _look(self, shape: Hashable | None) -> None:
        """Drop the graphs if something has changed that a graph cannot follow."""
        if (reason := self._limits.refusal(shape)) is not None:
            self._refuse(reason)
            return
        if self._begun:
            self._follow_changes()
        if self.refusal is None and not self._begun:
            self._begun = True
            self._guards.take()
            self._settings = self._read_settings()

    def _follow_changes(self) -> None:
        """Drop the graphs of changed parts; stop capturing parts that have changed too often."""
        of_model = self._guards.changed()
        settings = self._read_settings()
        if of_model is None and settings == self._settings:
            return
        in_vain = self._limits.dropped()
        self._store()
        self._forget()
        if in_vain:
            self._limits.pardon()
            if of_model is not None:
                self._refuse(f"{of_model} keeps changing")
                return
            for name, found in settings.items():
                if found != self._settings[name]:
                    self._leave_out(name, f"{_differing(found, self._settings[name])} keeps changing")

    def _read_settings(self) -> dict[str, dict[str, Any]]:
        """Return the values, other than the contents of tensors, that the code of each captured metric reads."""
        return {name: _settings_of(metric) for name, metric in self._metrics.items() if name not in self.left_out}

    def _forget(self) -> None:
        """Drop the graphs."""
        self._graph.forget()
        self._begun = False
        self._limits.forget_shapes()
        self._seen: dict[Hashable, int] = {}
        self._captured: dict[Hashable, _Captured] = {}
        self._sums: dict[str, Sums] = {}

    def _refuse(self, reason: str) -> None:
        self._tell(f"The evaluation is not captured: {reason}.")
        self.refusal = reason
        self._store()
        self._forget()

    def _leave_out(self, name: str, reason: str) -> None:
        """Process a metric outside of the graphs from here on."""
        self._tell(f"The evaluation is captured without metric.{name}: {reason}.")
        self.left_out.add(name)
        self._forget()

    # -- one batch -----------------------------------------------------------------------------------------------------

    def _run(self, batch: Any) -> Any:
        """Evaluate a batch normally."""
        self._store()
        outputs = self._predict(batch)
        for metric in self._metrics.values():
            metric.process(batch, outputs)
        return outputs

    def _warm_up(self, batch: Any, *, judge: bool) -> Any:
        """Evaluate a batch before the capture; the last of these batches decides what can be captured."""
        self._store()
        drawn = rng_state.drawn() if judge else None
        outputs, reason = self._graph.warm_up(lambda: self._predict(batch))
        if judge:
            if signature_of(outputs, [], self._device) is None:
                reason = reason or "the predictions contain something other than tensors on the device"
            elif drawn != rng_state.drawn():
                reason = "the evaluation draws random numbers on the CPU"
            if reason is not None:
                self._refuse(reason)
        for name, metric in self._metrics.items():
            if name in self.left_out or self.refusal is not None:
                metric.process(batch, outputs)
            else:
                self._warm_up_metric(name, metric, batch, outputs, judge=judge)
        return outputs

    def _warm_up_metric(self, name: str, metric: Metric, batch: Any, outputs: Any, *, judge: bool) -> None:
        drawn = rng_state.drawn() if judge else None
        sums, reason = self._graph.warm_up(lambda: _sums_of(metric, batch, outputs))
        metric.add(sums)
        if not judge:
            return
        if drawn != rng_state.drawn():
            reason = "the metric draws random numbers on the CPU"
        elif not all(isinstance(value, Tensor) and value.device == self._device for value in sums.values()):
            reason = "not all sums of the metric are tensors on the device"
        elif reason is None:
            totals = self._sums.setdefault(name, {key: torch.full_like(value, NOTHING) for key, value in sums.items()})
            if _kinds(totals) != _kinds(sums):
                reason = "the sums of the metric differ in names, shapes or dtypes between batches"
        if reason is not None:
            self._leave_out(name, reason)

    def _capture(self, batch: Any, tensors: list[Tensor]) -> _Captured:
        inputs = [tensor.clone() for tensor in tensors]
        static = with_tensors(batch, iter(inputs))

        def work() -> tuple[Any, list[Tensor]]:
            outputs = self._predict(static)
            for name, totals in self._sums.items():
                sums = _sums_of(self._metrics[name], static, outputs)
                foreach.add_([*totals.values()], [sums[key] for key in totals])
            leaves: list[Tensor] = []
            signature_of(outputs, leaves, self._device)
            return outputs, leaves

        replay, (outputs, leaves) = self._graph.capture(work)
        return _Captured(inputs, replay, outputs, leaves)

    def _replay(self, captured: _Captured, batch: Any, tensors: list[Tensor]) -> Any:
        if tensors:
            foreach.copy_(captured.inputs, tensors)
        self._load()
        captured.replay()
        self._limits.replays += 1
        if not self._watched and not self.left_out:
            return None
        outputs = with_tensors(captured.outputs, iter([leaf.clone() for leaf in captured.leaves]))
        for name, metric in self._metrics.items():
            if name in self.left_out:
                metric.process(batch, outputs)
        if self._watched:
            self._store()
        return outputs

    # -- the sums ------------------------------------------------------------------------------------------------------

    def _load(self) -> None:
        """Move the state of the metrics to the tensors to which the graphs add, if necessary."""
        if self._ahead:
            return
        self._ahead = True
        for name, totals in self._sums.items():
            state = self._metrics[name].state
            for key, total in totals.items():
                if key in state:
                    total.copy_(state[key])
                else:
                    total.fill_(NOTHING)

    def _store(self) -> None:
        """Give the metrics copies of their sums, which later batches do not change."""
        if self._ahead:
            self._ahead = False
            for name, totals in self._sums.items():
                self._metrics[name].state.update({key: total.clone() for key, total in totals.items()})


@dataclass(frozen=True)
class _Captured:
    """A captured evaluation of one shape of batch.

    Attributes:
        inputs: the tensors of the batch that the graph reads.
        replay: the function that does the work.
        outputs: the predictions, in memory that the next replay overwrites.
        leaves: the tensors among them.
    """

    inputs: list[Tensor]
    replay: Callable[[], None]
    outputs: Any
    leaves: list[Tensor]


def _sums_of(metric: Metric, batch: Any, outputs: Any) -> Sums:
    """Return the sums that `process` would add to the state of a metric, without adding them."""
    held, metric.state = metric.state, {}
    try:
        metric.process(batch, outputs)
        return metric.state
    finally:
        metric.state = held


def _settings_of(metric: Metric) -> dict[str, Any]:
    """Return a metric's plain values, the addresses of its tensors, and the lengths of its containers."""
    found: dict[str, Any] = {}
    for key, value in vars(metric).items():
        if isinstance(value, Tensor):
            found[key] = value.data_ptr()
        elif value is None or isinstance(value, PLAIN):
            found[key] = value
        elif isinstance(value, list | tuple | dict | set) and key != "state":
            found[key] = len(value)
    return found


def _are_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two mappings contain the same objects under the same names."""
    return one.keys() == other.keys() and all(value is other[name] for name, value in one.items())


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return a key under which two unequal mappings differ."""
    return next(key for key in (*one, *other) if key not in one or key not in other or one[key] != other[key])


def _kinds(sums: Sums) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {key: (value.shape, value.dtype) for key, value in sums.items()}
