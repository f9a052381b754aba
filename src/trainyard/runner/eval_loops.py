"""Validation and test loops: the order of events only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trainyard.data import Loader
from trainyard.data.lengths import no_batches
from trainyard.metrics import results_of
from trainyard.runner.batch_checks import check_resident_targets, in_range
from trainyard.runner.member import read
from trainyard.runner.switching import evaluated_in_training

if TYPE_CHECKING:
    from trainyard.runner.runner import Runner

Results = list[dict[str, float]]
Stage = Callable[..., None]
"""Method of a hook for a stage."""


class ValLoop:
    """Validation loop: one pass over the validation data, with metrics recorded in the journal.

    Several sets (`val/easy`, `val/hard`) are evaluated one by one, in the order of the data, and all results are
    recorded together.

    Attributes:
        split: "val" or "test"; it is part of the names of the hook stages.
        stages: additional stages, which a custom loop calls with `runner.call`.
        current: the set that is being evaluated: `val`, or `val/easy` if there are several.
    """

    split = "val"
    stages: tuple[str, ...] = ()
    current = "val"

    def run(self, runner: Runner) -> Results:
        """Evaluate `runner.eval_model` once on every sample of every set.

        Returns:
            For each member, the results under `<set>/<metric>`; empty if the run was interrupted.
        """
        split = self.split
        results: Results = [{} for _ in runner.members]
        arrays: dict[str, Tensor] = {}
        runner.call(f"before_{split}")
        runner.call(f"before_{split}_epoch")
        for name in runner.sets(split):
            with evaluated_in_training(runner):
                self.run_set(runner, name)
            if runner.interrupted:
                return []
            numbers, others = self._compute(runner, name)
            for own, found in zip(results, read(numbers, len(results)), strict=True):
                own.update(found)
            arrays.update(others)
        for name, value in arrays.items():
            runner.record_array(name, value)
        for member, values in zip(runner.members, results, strict=True):
            if member.due:
                member.record(values, step=member.iter, epoch=member.epoch)
        self.judge(runner)
        runner.call(f"after_{split}_epoch", metrics=results[0] if len(results) == 1 else results)
        self.done(runner)
        runner.call(f"after_{split}")
        return results

    def run_set(self, runner: Runner, name: str) -> None:
        """Run every batch of one set through the model, and pass the predictions to the metrics.

        Raises:
            TrainyardError: the set has no batch, or the ranks have read different data.
        """
        stages = (f"before_{self.split}_iter", f"after_{self.split}_iter", "after_idle_iter")
        self._run(runner, name, runner.loader(name), *map(runner.stage, stages))

    def judge(self, runner: Runner) -> None:
        """Compare the results with the best objective."""
        if runner.training:
            for member in runner.members:
                if member.due:
                    member.judge(step=member.iter, epoch=member.epoch)

    def done(self, runner: Runner) -> None:
        """Record that the validation has finished, so that a resumed run does not repeat it."""
        if runner.training:
            runner.train_loop.val_due = False

    def sanity_check(self, runner: Runner) -> list[str]:
        """Evaluate model and metrics on one batch of each set, discard the results, and return their names.

        Raises:
            TrainyardError: a set has no batch.
        """
        names: list[str] = []
        for name in runner.sets(self.split):
            predict = self.predictor(runner, name)
            with torch.no_grad():
                loader = runner.loader(name)
                if (batch := next(iter(loader.batches()), None)) is not None:
                    with in_range(runner, name):
                        outputs = predict(batch)
                        for metric in runner.metrics.values():
                            metric.process(batch, outputs)
                    if not runner.stacked:
                        check_resident_targets(runner, outputs)
                elif (batch := next(runner.strategy.idle(loader), None)) is not None:
                    predict(batch)
                else:
                    raise no_batches(name)
                numbers, _ = self._compute(runner, name)
            names += numbers
        return names

    def measure(
        self, runner: Runner, loader: Loader, prefix: str
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]] | None:
        """Evaluate training data like a validation set, without the stages of hooks.

        Args:
            runner: the Runner, whose metrics are reset.
            loader: the loader of the batches, which all members share; of several ranks, each has some of the batches.
            prefix: the prefix of the names of the results.

        Returns:
            The results that are one number per member, and the other results; None if the run was interrupted.

        Raises:
            TrainyardError: there is no batch, or the ranks have read different data.
        """
        self._run(runner, "train", loader)
        return None if runner.interrupted else self._compute(runner, prefix)

    def _run(
        self,
        runner: Runner,
        name: str,
        loader: Loader,
        before_iter: Sequence[Stage] = (),
        after_iter: Sequence[Stage] = (),
        after_idle: Sequence[Stage] = (),
    ) -> None:
        """Run every batch of a loader through the model, and pass the predictions to the metrics."""
        predict = self.predictor(runner, name)
        evaluate = runner.evaluator.begin(predict, runner.metrics, watched=bool(before_iter or after_iter))
        with torch.no_grad():
            seen = 0
            for index, batch in enumerate(loader.batches()):
                seen = index + 1
                for hook in before_iter:
                    hook(runner, index, batch)
                outputs = evaluate(batch)
                for hook in after_iter:
                    hook(runner, index, batch, outputs)
                if runner.interrupted:
                    return
            evaluate.end()
            runner.strategy.check_served(loader, name)
            for batch in runner.strategy.idle(loader):
                predict(batch)  # another rank has one more batch, and a forward pass may need all ranks
                for hook in after_idle:
                    hook(runner, batch)
        of_all = getattr(loader, "served", runner.strategy.world_size > 1)
        if not (seen or of_all):  # of several ranks, one may have no turn
            raise no_batches(name)

    def predictor(self, runner: Runner, name: str) -> Callable[[Any], Any]:
        """Prepare model and metrics for a set, and return the function from a batch to predictions."""
        self.current = name
        runner.eval_model.eval()
        runner.strategy.before_evaluation(runner.eval_model)
        metainfo = runner.metainfo(name)
        for metric in runner.metrics.values():
            metric.reset()
            if metainfo is not None:
                metric.describe(metainfo)
        return runner.predict_step(self.split)

    def _compute(self, runner: Runner, name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return by name the results that are one number per member, and the other results."""
        members = len(runner.members)
        numbers: dict[str, Tensor] = {}
        arrays: dict[str, Tensor] = {}
        for key, value in results_of(runner.metrics).items():
            if value.numel() == members:
                numbers[f"{name}/{key}"] = value
            else:
                arrays[f"{name}/{key}"] = value.clone()  # a metric may return its state, which the next set changes
        return numbers, arrays


class TestLoop(ValLoop):
    """Test loop: one pass over the test data. Test results do not rank runs."""

    split = "test"
    current = "test"
    __test__ = False  # not a test case of pytest, despite the name

    def judge(self, runner: Runner) -> None:
        """Do nothing: test results do not change the best objective."""

    def done(self, runner: Runner) -> None:
        """Do nothing: a test does not change the training state."""
