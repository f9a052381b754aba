"""EMA hook: averaged weights (EMA, SWA), which are evaluated instead of the weights or in addition to them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainyard._torch_internals import foreach
from trainyard.checks import boolean, choice, integer, number
from trainyard.errors import Unfusable
from trainyard.metrics import Metric, results_of
from trainyard.runner import Runner, read
from trainyard.runner.evaluation import Evaluation, Evaluator
from trainyard.runner.hook import Hook

log = logging.getLogger("trainyard")

KINDS = ("exponential", "swa", "annealing")
SHARED = ("kind", "begin", "interval", "by", "update_buffers", "gamma")
"""Settings that all members of a stack share."""


class EMA(Hook):
    """Keeps averaged weights, which are evaluated instead of the trained weights.

    Each update moves the average towards the weights by a fraction of their distance, `average.lerp_(weights, share)`:

    | kind | share |
    |---|---|
    | `exponential` | `1 - decay` |
    | `swa` | `1 / (updates so far + 1)`, which gives the arithmetic mean |
    | `annealing` | `max(1 - decay, gamma / (gamma + steps so far))` |

    Sources: Polyak and Juditsky, "Acceleration of stochastic approximation by averaging" (1992); Izmailov et al.,
    "Averaging weights leads to wider optima and better generalization" (2018); MMEngine's `MomentumAnnealingEMA`.

    The first update copies the weights. Before the first update, the trained model is evaluated. A copy of the model
    contains the averaged weights. A checkpoint contains both: a resumed run continues with the trained weights, and
    `load_from` loads the averaged weights.

    The number of updates is stored on the host. An update does not read from the device or copy to the device.

    Args:
        decay: the fraction of the average that an update keeps, at least 0 and below 1.
        momentum: `1 - decay`, as an alternative to `decay`.
        kind: `exponential`, `swa` or `annealing`.
        begin: no update is made before this epoch (or iteration, in an iteration loop), counted from 1.
        interval: iterations (or epochs) between updates.
        by: the unit of `interval`, `iter` or `epoch`; with `epoch`, updates are made at the end of an epoch.
        update_buffers: also average floating-point buffers (BatchNorm's statistics); otherwise the buffers of the
            trained model are used.
        gamma: for `annealing`: with a larger value, the average is close to the arithmetic mean for more steps.
        evaluate: `average` evaluates only the averaged weights; `both` also evaluates the trained weights at the
            validations of a training run, with results under `val_raw/`.
    """

    priority = "NORMAL"
    stackable = True

    def __init__(
        self,
        decay: float = 0.999,
        momentum: float | None = None,
        kind: str = "exponential",
        begin: int = 1,
        interval: int = 1,
        by: str = "iter",
        update_buffers: bool = False,
        gamma: float = 100.0,
        evaluate: str = "average",
    ) -> None:
        self.decay = number("decay", decay, at_least=0, below=1)
        if momentum is not None:
            self.decay = 1 - number("momentum", momentum, above=0, at_most=1, other="null to use `decay`")
        self.kind = choice("kind", kind, KINDS)
        self.begin = integer("begin", begin, at_least=1)
        self.interval = integer("interval", interval, at_least=1)
        self.by = choice("by", by, ("iter", "epoch"))
        self.update_buffers = boolean("update_buffers", update_buffers)
        self.gamma = number("gamma", gamma, above=0)
        self._raw: RawResults | None = None
        if choice("evaluate", evaluate, ("average", "both")) == "both":
            self._raw = RawResults()
            # A stage of this setting alone: without it, evaluation need not return predictions.
            self.after_val_iter = self._evaluate_raw
        self._others: list[EMA] | None = None
        self._average: nn.Module | None = None
        self._updates = 0
        self._loaded: dict[int, int] = {}
        """Updates of each member's average so far, as its checkpoint has them."""
        self._counts: list[int] | None = None
        """Updates of each lane's average so far, if they differ; `_updates` is then the maximum."""
        self._done: Tensor | None = None
        """The same on the device, float64 `[K]`."""
        self._first: int | None = None
        """Iteration (or epoch, as `by` says) of the first update; None until it is known."""
        self._least: dict[torch.dtype, Tensor] = {}
        """`1 - decay` of each member of a stack, `[K]`, on the device, by dtype."""

    @property
    def own_places(self) -> bool:  # type: ignore[override]
        """Whether every iteration (or epoch) has an update, regardless of the start of a member."""
        return self.begin == 1 and self.interval == 1 and self._raw is None

    @property
    def own_epochs(self) -> bool:  # type: ignore[override]
        """Whether updates are made after iterations, not at the ends of epochs."""
        return self.by == "iter"

    def before_train(self, runner: Runner) -> None:
        self._averaged(runner)
        if len(set(self._loaded.values())) > 1 or 0 < len(self._loaded) < len(runner.members):
            self._count([self._loaded.get(lane, 0) for lane in range(len(runner.members))], runner)
        self._loaded = {}
        loop = runner.train_loop
        self._unit = loop.unit
        if self.by == self._unit or self.begin == 1:
            self._first = self.begin
        end = loop.max_epochs(runner) if self._unit == "epoch" else loop.max_iters(runner)
        if end is not None and self.begin > end:
            log.warning("hook.ema.begin=%d is after the end of the run, so the weights are not averaged.", self.begin)

    def before_train_epoch(self, runner: Runner) -> None:
        if self._first is None and self._unit == "epoch" and runner.epoch + 1 >= self.begin:
            self._first = runner.epoch_begin + 1

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        if self.by == "iter" and self._due(runner.iter):
            self._take_weights(runner)
        elif self._began and not self.update_buffers:
            self._take_buffers(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        if self._first is None and self._unit == "iter" and runner.iter >= self.begin:
            self._first = runner.epoch
        if self.by == "epoch" and self._due(runner.epoch):
            self._take_weights(runner)

    def before_val_epoch(self, runner: Runner) -> None:
        if self._raw is not None and runner.training and self._began:
            self._raw.begin(runner)

    def after_idle_iter(self, runner: Runner, data_batch: Any) -> None:
        if self._raw is not None:
            self._raw.idle(data_batch)

    def after_val_epoch(self, runner: Runner, metrics: Any) -> None:
        if self._raw is not None:
            self._raw.record(runner)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        if "eval_model" in checkpoint:
            runner.eval_model = self._averaged(runner)
        else:
            self._updates = 0
        if self._first is None and "batches" in checkpoint:  # of an earlier version, whose epochs all had this length
            length, by_epoch = checkpoint["batches"], runner.train_loop.unit == "epoch"
            begin = (self.begin - 1) * length + 1 if by_epoch else self.begin
            self._first = begin if self.by == "iter" else -(-begin // length)

    def metric_names(self, names: Sequence[str]) -> Sequence[str]:
        return () if self._raw is None else [raw(name) for name in names]

    def state_dict(self, member: int = 0) -> dict[str, Any]:
        updates = self._updates if self._counts is None else self._counts[member]
        return {"updates": 0 if self._average is None else updates, "first": self._first}

    def load_state_dict(self, state: dict[str, Any], member: int = 0) -> None:
        updates = self._loaded[member] = int(state["updates"])
        self._updates = max(self._loaded.values())
        if self._counts is not None and self._done is not None:
            self._counts[member] = updates
            self._done[member] = updates
            self._updates = max(self._counts)
        self._first = state.get("first")

    def refill(self, runner: Runner, members: Mapping[int, Hook | None]) -> None:
        others = self._others = self._others or [self] * len(runner.members)
        for lane, hook in members.items():
            if isinstance(hook, EMA):
                others[lane] = hook
        self._least = {}
        counts = self._counts or [self._updates] * len(runner.members)
        self._count([0 if lane in members else count for lane, count in enumerate(counts)], runner)

    def copy_lane(self, source: int, target: int) -> None:
        if self._others is not None:
            self._others[target] = self._others[source]
            self._least = {}
        super().copy_lane(source, target)

    def _count(self, counts: list[int], runner: Runner) -> None:
        """Count the updates of each lane separately from here on."""
        self._counts, self._updates = counts, max(counts)
        found = torch.tensor(counts, dtype=torch.float64)
        if self._done is None or len(self._done) != len(counts):
            self._done = found.to(runner.device)
        else:
            self._done.copy_(found)

    def stack(self, hooks: Sequence[Hook]) -> None:
        self._others = [hook for hook in hooks if isinstance(hook, EMA)]
        for name in SHARED:
            if len({getattr(hook, name) for hook in self._others}) > 1:
                raise Unfusable(f"the members differ in {name} of hook.ema; only the decay may differ")

    def keep(self, members: Sequence[int]) -> None:
        if self._others is not None:
            self._others = [self._others[index] for index in members]
            self._least = {}
        if self._counts is not None and self._done is not None:
            self._counts = [self._counts[index] for index in members]
            self._done = self._done[list(members)]
        stacked: Any = None if self._average is None or self._began else self._average
        if stacked is not None:  # not yet the `eval_model`, so the Runner does not select its members
            stacked.keep(members)

    @property
    def _began(self) -> bool:
        return self._average is not None and self._updates > 0

    def _evaluate_raw(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        assert self._raw is not None
        self._raw.process(data_batch, runner.val_loop.current)

    def _due(self, count: int) -> bool:
        """Return whether there is an update after iteration (or epoch) number `count`."""
        first = self._first
        return first is not None and count >= first and (count - first) % self.interval == 0

    @torch.no_grad()
    def _take_weights(self, runner: Runner) -> None:
        """Update the average."""
        averaged, own = self._tensors(self._averaged(runner)), self._tensors(runner.model)
        if len(averaged) != len(own):
            averaged = self._tensors(self._refitted(runner))
        if self._updates == 0:
            for mine, weight in zip(averaged, own, strict=True):  # one by one: shares of FSDP know no copy of a list
                mine.copy_(weight)
        else:
            alike: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[Tensor]]] = {}
            for mine, weight in zip(averaged, own, strict=True):
                averages, weights = alike.setdefault((mine.device, mine.dtype), ([], []))
                averages.append(mine)
                weights.append(weight)
            for averages, weights in alike.values():
                self._update(averages, weights)
        if not self.update_buffers:
            self._take_buffers(runner)
        self._updates += 1
        if self._counts is not None and self._done is not None:
            self._counts = [count + 1 for count in self._counts]
            self._done += 1
        runner.eval_model = self._averaged(runner)

    @torch.no_grad()
    def _take_buffers(self, runner: Runner) -> None:
        """Copy the model's buffers into the average, also between two updates."""
        averaged, own = [*self._averaged(runner).buffers()], [*runner.model.buffers()]
        if len(averaged) != len(own):
            averaged = [*self._refitted(runner).buffers()]
        if own:
            foreach.copy_(averaged, own)

    def _refitted(self, runner: Runner) -> nn.Module:
        """Return the average of a model that has gained or lost tensors: by name, new ones start as those of the
        model."""
        fitting = copy.deepcopy(runner.model)
        fitting.load_state_dict(self._averaged(runner).state_dict(), strict=False)
        self._average = fitting
        if self._updates:
            runner.eval_model = fitting
        return fitting

    def _averaged(self, runner: Runner) -> nn.Module:
        if self._average is None:
            foreach.resolve()
            self._average = copy.deepcopy(runner.model)
        return self._average

    def _tensors(self, model: nn.Module) -> list[Tensor]:
        """Return the averaged tensors of a model."""
        return [*model.parameters(), *(model.buffers() if self.update_buffers else ())]

    def _update(self, averages: list[Tensor], weights: list[Tensor]) -> None:
        """Update tensors of one dtype; integers, such as BatchNorm's count, are copied."""
        if not (averages[0].is_floating_point() or averages[0].is_complex()):
            foreach.copy_(averages, weights)
        elif self._done is None and (self._others is None or self.kind == "swa"):
            foreach.lerp_(averages, weights, self._share())
        else:
            shares = self._shares(averages[0])
            for average, weight in zip(averages, weights, strict=True):
                average.lerp_(weight, shares.view(-1, *[1] * (average.ndim - 1)))

    def _shares(self, tensor: Tensor) -> Tensor:
        """Return the fraction of each member of a stack, `[K]`, in the dtype of `tensor`.

        Each member's `1 - decay` is copied to the device once. The number that changes between updates is the same for
        all members and is an argument of the kernel. If members have had different numbers of updates, it is computed
        on the device.
        """
        if self._done is not None and self.kind == "swa":
            return (1 / (self._done + 1)).to(tensor.dtype)
        if (least := self._least.get(tensor.dtype)) is None:
            decays = [1 - hook.decay for hook in self._others or [self] * len(self._counts or ())]
            least = torch.tensor(decays, dtype=torch.float64).to(tensor.device, tensor.dtype)
            self._least[tensor.dtype] = least
        if self._done is not None and self.kind == "annealing":
            annealed = self.gamma / (self.gamma + self._done * self.interval)
            return least.maximum(annealed.to(least.dtype))
        if self._done is not None:
            return torch.where(self._done == 0, 1.0, least).to(least.dtype)  # the first update copies the weights
        return least.clamp_min(self._annealed()) if self.kind == "annealing" else least

    def _share(self) -> float:
        """Return the fraction of the distance to the weights that the next update moves."""
        if self.kind == "swa":
            return 1 / (self._updates + 1)
        return max(1 - self.decay, self._annealed()) if self.kind == "annealing" else 1 - self.decay

    def _annealed(self) -> float:
        """Return the minimum fraction that `annealing` moves."""
        return self.gamma / (self.gamma + self._updates * self.interval)


class RawResults:
    """Evaluates `runner.model` on the batches of a validation, in addition to the average.

    It has its own metrics; the results are recorded as `val_raw/<name>`, for a set `val/easy` as `val_raw/easy/<name>`.
    """

    def __init__(self) -> None:
        self._predict: Callable[[Any], Any] | None = None
        self._of: Mapping[str, Metric] = {}
        self._metrics: dict[str, dict[str, Metric]] = {}
        self._evaluators: dict[str, Evaluator] = {}
        self._evaluations: dict[str, Evaluation] = {}

    def begin(self, runner: Runner) -> None:
        """Prepare for a validation: model, metrics and evaluation of each set."""
        evaluated = runner.eval_model
        try:
            runner.eval_model = runner.model
            self._predict = runner.predict_step("val")
        finally:
            runner.eval_model = evaluated
        runner.model.eval()
        if self._of is not runner.metrics:
            self._of = runner.metrics
            self._metrics = {name: copy.deepcopy(runner.metrics) for name in runner.sets("val")}
        for name, metrics in self._metrics.items():
            for metric in metrics.values():
                metric.reset()
            evaluator = self._evaluators.setdefault(name, runner.evaluator.another())
            self._evaluations[name] = evaluator.begin(self._predict, metrics, watched=False)

    def process(self, batch: Any, split: str) -> None:
        """Evaluate a batch of this set."""
        if self._predict is not None:
            self._evaluations[split](batch)

    def idle(self, batch: Any) -> None:
        """Run a batch that does not count, so that all ranks make the same number of forward passes."""
        if self._predict is not None:
            self._predict(batch)

    def record(self, runner: Runner) -> None:
        """Record the results that are one number per member, after the last batch."""
        if self._predict is None:
            return
        self._predict = None
        for evaluation in self._evaluations.values():
            evaluation.end()
        results: dict[str, Tensor] = {}
        for split, metrics in self._metrics.items():
            for name, value in results_of(metrics).items():
                if value.numel() == len(runner.members):
                    results[f"{raw(split)}/{name}"] = value
        for member, values in zip(runner.members, read(results, len(runner.members)), strict=True):
            member.record(values, step=member.iter, epoch=member.epoch)


def raw(name: str) -> str:
    """Return the name under which a set or a result of the unaveraged weights is recorded."""
    return name.replace("val", "val_raw", 1)
