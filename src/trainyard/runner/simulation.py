"""Training loop without data: batches come from a simulation that the loop itself runs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from trainyard.checks import integer
from trainyard.runner.loops import TrainLoop
from trainyard.runner.switching import evaluated_in_training

if TYPE_CHECKING:
    from trainyard.runner.parts import Parts
    from trainyard.runner.runner import Runner


class SimulationTrainLoop(TrainLoop):
    """Trains for `max_iters` iterations on batches that a subclass creates; the run has no `data`.

    A subclass implements `next_batch` and `evaluate`, extends `state_dict` and `load_state_dict` with the state that a
    resumed run needs (such as a replay memory), and lists the names of the results of `evaluate` in `results`.
    Checkpoints already contain the states of torch's generators. The run is one epoch.

    Args:
        max_iters: the number of iterations.
        val_begin: no evaluation runs before this iteration, counted from 1.
        val_interval: iterations between two evaluations; an evaluation always follows the last iteration.

    Attributes:
        needs_data: False: the Runner does not require a training set.
        results: the names of the results of `evaluate`, without `val/`, for the check before training.
    """

    unit = "iter"
    needs_data = False
    results: tuple[str, ...] = ()

    def __init__(self, max_iters: int, val_begin: int = 1, val_interval: int = 1000) -> None:
        super().__init__(integer("max_iters", max_iters, at_least=1), val_begin, val_interval)

    @abstractmethod
    def next_batch(self, runner: Runner) -> Any:
        """Return the batch of the next iteration."""

    def evaluate(self, runner: Runner) -> Mapping[str, float]:
        """Return results by name, recorded as `val/<name>`; `runner.eval_model` is in evaluation mode."""
        return {}

    def after_step(self, runner: Runner) -> None:
        """Act after each step, for example by updating a target network; called before `runner.iter` is incremented."""

    def max_epochs(self, runner: Parts) -> int:
        return 1

    def max_iters(self, runner: Parts) -> int:
        return self.length

    def run(self, runner: Runner) -> None:
        before_iter, after_iter = runner.stage("before_train_iter"), runner.stage("after_train_iter")
        self.validate(runner)
        runner.model.train()
        runner.call("before_train_epoch")
        while runner.iter < self.length and not runner.stopping:
            index, batch = runner.iter, self.next_batch(runner)
            for hook in before_iter:
                hook(runner, index, batch)
            outputs = runner.step(batch, index, self.length)
            self.after_step(runner)
            runner.iter += 1
            self.val_due = bool(self.results) and self.validates_after(runner.iter)
            for hook in after_iter:
                hook(runner, index, batch, outputs)
            if not runner.stopping:
                self.validate(runner)
        if runner.iter == self.length and not runner.epoch and not runner.stopping:
            runner.epoch += 1
            runner.call("after_train_epoch")

    def validate(self, runner: Runner) -> None:
        """Run the evaluation that is due, and record its results."""
        if not self.val_due:
            return
        runner.call("before_val")
        runner.call("before_val_epoch")
        model, (member,) = runner.eval_model, runner.members
        model.eval()
        with torch.no_grad(), evaluated_in_training(runner):
            found = {f"val/{name}": float(value) for name, value in self.evaluate(runner).items()}
        model.train()
        member.record(found, step=member.iter, epoch=member.epoch)
        member.judge(step=runner.iter, epoch=runner.epoch)
        runner.call("after_val_epoch", metrics=found)
        self.val_due = False
        runner.call("after_val")


def needs_data(loop: Any) -> bool:
    """Return whether a training loop reads the training data."""
    return bool(getattr(loop, "needs_data", True))
