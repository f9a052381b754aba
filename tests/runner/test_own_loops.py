"""Loops of the user's own, for training, validation and test, with stages of their own."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from trainyard.errors import ConfigError
from trainyard.hooks import Checkpoint, Hook, Logger
from trainyard.models import MLP
from trainyard.run.rungs import RungReports
from trainyard.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner, TrainLoop, ValLoop, checkpoint
from trainyard.runner.dispatch import Dispatch
from trainyard.track.sweep_position import Rungs, SweepPosition

HERE = __name__


class TwoPhases(EpochBasedTrainLoop):
    """Each epoch a phase of training, and then one in which the weights are pulled towards those of the phase before.

    What it pulls towards is its own state, and in a checkpoint.
    """

    stages = ("before_mixing", "after_mixing")

    def __init__(self, max_epochs: Any, pull: float = 0.1, **more: Any) -> None:
        super().__init__(max_epochs, **more)
        self.pull = pull
        self.anchor = None
        self.mixed = 0

    def run(self, runner: Runner) -> None:
        self.validate(runner)
        self.mix(runner)  # where the run was ended between the two phases
        while runner.epoch < self.length and not runner.stopping:
            self.run_epoch(runner)
            self.mix(runner)

    def mix(self, runner: Runner) -> None:
        if self.mixed == runner.epoch or runner.stopping:
            return
        runner.call("before_mixing", weights=self.anchor)
        with torch.no_grad():
            for name, parameter in runner.model.named_parameters():
                if self.anchor is not None:
                    parameter.lerp_(self.anchor[name], self.pull)
        self.anchor = {name: parameter.detach().clone() for name, parameter in runner.model.named_parameters()}  # type: ignore[assignment]
        self.mixed = runner.epoch
        for hook in runner.stage("after_mixing"):
            hook(runner, weights=self.anchor)

    def state_dict(self) -> Any:
        return super().state_dict() | {"anchor": self.anchor, "mixed": self.mixed}

    def load_state_dict(self, state: Any) -> None:
        super().load_state_dict(state)
        self.anchor, self.mixed = state["anchor"], state["mixed"]


class Bare:
    """A loop from nothing: all that the Runner and the hooks ask for."""

    unit = "iter"

    def __init__(self, steps: Any) -> None:
        self.steps = steps
        self.val_due = False

    def max_epochs(self, runner: Runner) -> Any:
        return 1

    def max_iters(self, runner: Runner) -> Any:
        return self.steps

    def run(self, runner: Runner) -> None:
        runner.model.train()
        batches = list(runner.loader("train").batches(0))
        while runner.iter < self.steps and not runner.stopping:
            batch = batches[runner.iter % len(batches)]
            runner.call("before_train_iter", runner.iter, batch)
            outputs = runner.step(batch, runner.iter, self.steps)
            runner.iter += 1
            runner.call("after_train_iter", runner.iter - 1, batch, outputs)
        if not runner.stopping:
            runner.val_loop.run(runner)

    def state_dict(self) -> Any:
        return {"val_due": self.val_due}

    def load_state_dict(self, state: Any) -> None:
        self.val_due = state["val_due"]


class Mixing(Hook):
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def before_mixing(self, runner: Runner, weights: Any) -> None:
        self.calls.append(("before", runner.epoch, weights is not None))

    def after_mixing(self, runner: Runner, weights: Any) -> None:
        self.calls.append(("after", runner.epoch, weights.keys() == dict(runner.model.named_parameters()).keys()))


class KillAt(Hook):
    priority = "LOWEST"

    def __init__(self, iteration: Any) -> None:
        self.iteration = iteration

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        if runner.iter == self.iteration:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def make(parts: Any) -> Any:
    return lambda **more: Runner(**(parts | more))


def weights(runner: Any) -> Any:
    return torch.cat([parameter.detach().flatten() for parameter in runner.model.parameters()])


def test_by_its_target_with_stages_of_its_own(make: Any) -> None:
    hook = Mixing()
    made = make(loop={"_target_": f"{HERE}.TwoPhases", "max_epochs": 3, "pull": 0.5}, hooks={"mixing": hook})
    made.train()
    assert hook.calls == [
        (when, epoch, epoch > 1 or when == "after") for epoch in (1, 2, 3) for when in ("before", "after")
    ]
    assert not torch.equal(weights(made), weights(_trained(make())))


def _trained(runner: Any) -> Any:
    runner.train()
    return runner


@pytest.mark.parametrize("iteration", [3, 6, 8, 13, 18])
def test_killed_and_resumed_to_the_bit(make: Any, tmp_path: Path, iteration: int) -> None:
    def runner(folder: Any, **more: Any) -> Any:
        loop = {"_target_": f"{HERE}.TwoPhases", "max_epochs": 3, "val_interval": 2}
        hooks = {"logger": Logger(interval=2), "checkpoint": Checkpoint(2, by="iter")}
        return make(loop=loop, hooks=hooks | more.pop("hooks", {}), work_dir=tmp_path / folder, **more)

    whole = _trained(runner("whole"))
    child = os.fork()
    if child == 0:
        runner("killed", hooks={"kill": KillAt(iteration)}).train()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    again = _trained(runner("killed", resume=True))
    assert torch.equal(weights(again), weights(whole))
    assert (again.epoch, again.iter, again.train_loop.mixed) == (3, 18, 3)


def test_a_loop_from_nothing(make: Any, tmp_path: Path) -> None:
    """With the default hooks: logging, the schedule, checkpoints and resuming all work."""
    schedule = {"_target_": "trainyard.schedules.Schedule", "scheduler": {
        "_target_": "torch.optim.lr_scheduler.CosineAnnealingLR", "_partial_": True, "T_max": "auto"}}  # fmt: skip
    settings = {"loop": {"_target_": f"{HERE}.Bare", "steps": 9}, "schedule": schedule, "work_dir": tmp_path}
    first = make(**settings)
    (metrics,) = first.train()
    assert {"val/accuracy", "train/loss", "train/lr"} <= set(metrics)
    assert (first.iter, checkpoint.read_last(tmp_path / "checkpoints")[-1]) == (9, "iter_00000009.pt")
    longer = make(**settings | {"loop": Bare(12)}, resume=True)
    longer.train()
    assert longer.iter == 12


def test_what_a_loop_lacks_is_told(make: Any, tmp_path: Path) -> None:
    class Lacking:
        def run(self, runner: Runner) -> None:
            """Never called."""

    with pytest.raises(ConfigError) as error:
        make(loop=Lacking(), work_dir=tmp_path / "run").train()
    assert str(error.value) == (
        "loop: 'Lacking' is invalid. Expected an object with the attributes unit, val_due, max_epochs, max_iters, run, "
        "state_dict, load_state_dict (docs/runner.md). This object has no attribute unit."
    )
    with pytest.raises(ConfigError, match=r"val_loop: 'Lacking' is invalid. .* This object has no attribute current"):
        make(val_loop=Lacking(), work_dir=tmp_path / "run").train()
    assert not (tmp_path / "run").exists()


# -- stages ------------------------------------------------------------------------------------------------------------


def test_a_stage_spelt_wrong_names_the_nearest_of_both_kinds(make: Any) -> None:
    class Wrong(Hook):
        def before_mixin(self, runner: Runner) -> None:
            """Never called."""

    class Other(Hook):
        def after_train_epoc(self, runner: Runner) -> None:
            """Never called."""

    loop = {"_target_": f"{HERE}.TwoPhases", "max_epochs": 1}
    with pytest.raises(ConfigError, match=r"hook\.wrong: 'before_mixin' is invalid. .* Did you mean 'before_mixing'"):
        make(loop=loop, hooks={"wrong": Wrong()}).train()
    with pytest.raises(
        ConfigError, match=r"hook\.other: 'after_train_epoc' is invalid. .* Did you mean 'after_train_epoch'"
    ):
        make(loop=loop, hooks={"other": Other()}).train()
    with pytest.raises(ConfigError, match=r"hook\.mixing: 'after_mixing' is invalid"):
        make(hooks={"mixing": Mixing()}).train()


def test_a_runner_that_only_validates_knows_the_stages(make: Any) -> None:
    """They are read from the class: the loop itself is not built, and could not be."""
    made = make(loop={"_target_": f"{HERE}.TwoPhases", "max_epochs": 0}, hooks={"mixing": Mixing()})
    assert "val/accuracy" in made.val()[0]
    assert "train_loop" not in vars(made)


def test_a_stage_that_nobody_declared(make: Any) -> None:
    class Careless(EpochBasedTrainLoop):
        def run_epoch(self, runner: Runner) -> None:
            runner.call("before_mixing")

    with pytest.raises(ConfigError, match=r"stages: 'before_mixing' is invalid. Expected a stage; a custom loop names"):
        make(loop=Careless(1), hooks={}).train()


@pytest.mark.parametrize("stages", [("mixing",), (3,), "before_mixing"])
def test_names_that_no_hook_could_have(make: Any, stages: Any) -> None:
    class Named(EpochBasedTrainLoop):
        pass

    Named.stages = stages
    with pytest.raises(ConfigError, match=r"loop\.stages: .* names that start with before_ or after_") as error:
        make(loop=Named(1)).train()
    assert error.value.given == (stages if isinstance(stages, str) else stages[0])


def test_a_dispatch_costs_nothing_at_stages_that_no_hook_has() -> None:
    dispatch = Dispatch({"mixing": Mixing()}, TwoPhases.stages)
    assert [stage for stage in dispatch.stages if dispatch.stage(stage)] == ["before_mixing", "after_mixing"]


# -- validation and test -----------------------------------------------------------------------------------------------


class Shifted(ValLoop):
    """Evaluates points that are moved a little, and says so at a stage of its own."""

    stages = ("before_shift",)

    def __init__(self, shift: float = 0.0) -> None:
        self.shift = shift

    def run_set(self, runner: Runner, name: Any) -> None:
        runner.call("before_shift", name=name)
        super().run_set(runner, name)

    def predictor(self, runner: Runner, name: Any) -> Any:
        predict = super().predictor(runner, name)
        return lambda batch: predict((batch[0] + self.shift, *batch[1:]))


class ShiftedTest(Shifted):
    split = current = "test"

    def judge(self, runner: Runner) -> None:
        """It ranks nothing."""

    def done(self, runner: Runner) -> None:
        """It changes nothing of the training."""


def test_a_validation_and_a_test_of_ones_own(make: Any) -> None:
    names = []

    class Names(Hook):
        def before_shift(self, runner: Runner, name: Any) -> None:
            names.append(name)

    loops = {
        kind: {"_target_": f"{HERE}.{name}"} for kind, name in (("val_loop", "Shifted"), ("test_loop", "ShiftedTest"))
    }
    plain = make()
    plain.train()
    same = make(**loops, hooks={"names": Names()})
    same.train()
    assert names == ["val"] * 3
    assert same.test() == plain.test()
    assert names == ["val"] * 3 + ["test"]
    moved = make(val_loop=Shifted(3.0), test_loop=ShiftedTest(3.0), hooks={})
    assert moved.train()[0]["val/loss"] != plain.members[0].metrics["val/loss"]
    assert moved.test() != plain.test()


class BareEpochs:
    """A loop without a base class, with only the names of the contract: a validation after each epoch."""

    unit = "epoch"
    val_due = False

    def __init__(self, epochs: int | None = 2) -> None:
        self.epochs = epochs

    def max_epochs(self, runner: Runner) -> int | None:
        return self.epochs

    def max_iters(self, runner: Runner) -> None:
        return None

    def run(self, runner: Runner) -> None:
        while runner.epoch < 2 and not runner.stopping:
            runner.model.train()
            for index, batch in enumerate(runner.loader("train").batches(runner.epoch)):
                runner.call("before_train_iter", index, batch)
                outputs = runner.step(batch, index, runner.reader.total)
                runner.iter += 1
                runner.call("after_train_iter", index, batch, outputs)
            runner.epoch += 1
            self.val_due = True
            runner.call("after_train_epoch")
            runner.val_loop.run(runner)

    def state_dict(self) -> dict[str, Any]:
        return {"val_due": self.val_due}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.val_due = state["val_due"]


@pytest.mark.parametrize("epochs", [2, None])
def test_a_loop_with_only_the_names_of_the_contract(
    make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, epochs: int | None
) -> None:
    caplog.set_level("INFO")
    reached: list[int] = []
    position = SweepPosition(None, (), "job", rungs=Rungs((1, 2)), wake=reached.append)
    hooks = {"logger": Logger(val_lines="best"), "checkpoint": Checkpoint(), "rungs": RungReports([position])}
    runner = make(loop=BareEpochs(epochs), model=MLP(2, 2, hidden=[4]), hooks=hooks, work_dir=tmp_path / "run")
    runner.train()
    assert (runner.epoch, reached) == (2, [1, 2])
    at_end = any(record.getMessage().startswith("val  epoch 2") for record in caplog.records)
    assert at_end == (epochs is not None), "the accuracy of the second epoch is not the best"
    runner.train()
    advice = "increase the length of the loop (BareEpochs)."
    assert any(record.getMessage().endswith(advice) for record in caplog.records) == (epochs is not None)


def test_a_job_with_such_a_loop_pauses_at_a_rung(make: Any, tmp_path: Path) -> None:
    position = SweepPosition(None, (), "job", rungs=Rungs((1, 2), until=1))
    hooks = {"checkpoint": Checkpoint(), "rungs": RungReports([position])}
    runner = make(loop=BareEpochs(), model=MLP(2, 2, hidden=[4]), hooks=hooks, work_dir=tmp_path / "run")
    runner.train()
    assert (runner.epoch, runner.members[0].paused) == (1, True)


def test_a_rung_without_a_validation_is_refused(make: Any, tmp_path: Path) -> None:
    position = SweepPosition(None, (), "job", rungs=Rungs((3,), by="iter"))
    hooks = {"checkpoint": Checkpoint(), "rungs": RungReports([position])}
    runner = make(loop=IterBasedTrainLoop(6, val_interval=2), hooks=hooks, work_dir=tmp_path / "run")
    refusal = r"^loop\.val_interval: 2 .* an interval that validates after iteration 3, a rung of the sweep"
    with pytest.raises(ConfigError, match=refusal):
        runner.train()


def test_a_rung_without_checkpoints_is_refused(make: Any, tmp_path: Path) -> None:
    hooks = {"rungs": RungReports([SweepPosition(None, (), "job", rungs=Rungs((1,)))])}
    with pytest.raises(ConfigError, match=r"^hook\.checkpoint: None .* a hook that saves checkpoints"):
        make(loop=BareEpochs(), model=MLP(2, 2, hidden=[4]), hooks=hooks, work_dir=tmp_path / "run").train()


def test_a_subclass_of_train_loop_needs_three_methods(make: Any) -> None:
    class Halves(TrainLoop):
        """Two iterations, then a validation, so many times."""

        unit = "iter"

        def __init__(self, times: Any) -> None:
            super().__init__(2 * times, val_begin=1, val_interval=2)

        def max_epochs(self, runner: Runner) -> Any:
            return 1

        def max_iters(self, runner: Runner) -> Any:
            return self.length

        def run(self, runner: Runner) -> None:
            for batch in runner.loader("train").batches():
                if runner.iter == self.length:
                    break
                runner.call("before_train_iter", runner.iter, batch)
                outputs = runner.step(batch, runner.iter, self.length)
                runner.iter += 1
                runner.call("after_train_iter", runner.iter - 1, batch, outputs)
                self.val_due = self.validates_after(runner.iter)
                self.validate(runner)

    validated = []

    class Count(Hook):
        def after_val(self, runner: Runner) -> None:
            validated.append(runner.iter)

    make(loop=Halves(3), model=MLP(2, 2, hidden=[4]), hooks={"count": Count()}).train()
    assert validated == [2, 4, 6]
