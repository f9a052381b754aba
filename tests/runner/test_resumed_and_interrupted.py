"""What watches a metric needs a validation; an interrupted last epoch counts; reading an example draws nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from interrupting import InterruptAt
from omegaconf import OmegaConf
from torch.utils.data import DataLoader, Dataset

from trainyard.config.current_job import current_job
from trainyard.errors import ConfigError
from trainyard.hooks import Checkpoint, EarlyStopping, Hook
from trainyard.run import record
from trainyard.runner import IterBasedTrainLoop, Runner
from trainyard.schedules import Plateau
from trainyard.track import NoTracker, read


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ({"hooks": {"early_stop": EarlyStopping()}}, "hook.early_stop.monitor"),
        ({"schedule": Plateau()}, "schedule.monitor"),
    ],
)
def test_watching_without_a_validation(parts: Any, more: Any, key: str) -> None:
    parts["data"]["val_fraction"] = 0
    with pytest.raises(ConfigError, match="the data has no validation") as error:
        Runner(**parts | more).prepare()
    assert error.value.key == key


def two_epochs(parts: Any, batches: int, work_dir: Path, **more: Any) -> Runner:
    """Train for two epochs by iteration, with a validation after each."""
    hooks = {"checkpoint": Checkpoint()} | more.pop("hooks", {})
    loop = IterBasedTrainLoop(2 * batches, val_interval=batches)
    runner = Runner(**parts | {"loop": loop, "work_dir": work_dir, "hooks": hooks} | more)
    runner.train()
    return runner


def test_the_last_epoch_of_an_interrupted_run_counts(parts: Any, tmp_path: Path) -> None:
    """Ended after its last iteration, before the validation: resumed, it stands where the undisturbed run stands."""
    batches = 6

    def run(name: Any, **more: Any) -> Any:
        return two_epochs(parts, batches, tmp_path / name, **more)

    undisturbed = run("undisturbed")
    assert len(undisturbed.loader("train")) == batches
    run("ended", hooks={"interrupt": InterruptAt(2 * batches)})
    resumed = run("ended", resume=True)
    assert resumed.iter == undisturbed.iter == 2 * batches
    assert resumed.epoch == undisturbed.epoch == 2
    assert resumed.members[0].metrics == undisturbed.members[0].metrics


class InterruptInVal(Hook):
    """Interrupts the run in the validation after an iteration."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        if runner.iter == self.iteration:
            runner.interrupt()


def test_a_validation_at_the_end_of_an_epoch_keeps_its_epoch(parts: Any, tmp_path: Path) -> None:
    """Interrupted in the validation after the last batch of an epoch: it comes again, in the same epoch."""
    batches = 6

    def run(name: Any, **more: Any) -> Any:
        runner = two_epochs(parts, batches, tmp_path / name, **more)
        lines = [record for record, _ in read(tmp_path / name / "metrics.jsonl") if record["kind"] == "metrics"]
        return runner, [(line["step"], line["epoch"], line["values"]) for line in lines]

    undisturbed, expected = run("undisturbed")
    assert len(undisturbed.loader("train")) == batches
    run("interrupted", hooks={"interrupt": InterruptInVal(batches)})
    resumed, found = run("interrupted", resume=True)
    assert found == expected
    assert resumed.epoch == undisturbed.epoch == 2
    assert resumed.members[0].best == undisturbed.members[0].best


class Noisy(Dataset[Any]):
    """Draws from the global generator for every sample, as augmentations do."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: Any) -> Any:
        return torch.randn(2), index % 2


def test_reading_an_example_draws_nothing(parts: Any) -> None:
    """It is read anew when a run is resumed, after the generators were put back."""
    runner = Runner(
        **parts
        | {"data": {"train": DataLoader(Noisy(), 16)}, "model": parts["model"] | {"in_features": 2, "num_classes": 2}}
    )
    runner.prepare()
    before = torch.get_rng_state()
    assert record.example(runner) is not None
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("scheduled", [False, True])
def test_a_learning_rate_that_a_resume_does_not_read_is_named(
    parts: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, scheduled: bool
) -> None:
    parts["work_dir"] = tmp_path
    if scheduled:  # whose table follows the config
        parts["schedule"] = {
            "_target_": "trainyard.schedules.Schedule",
            "scheduler": {"_target_": "torch.optim.lr_scheduler.ConstantLR", "_partial_": True},
        }
    Runner(**parts).train()
    Runner(**parts, resume=True).prepare()
    assert "learning rate" not in caplog.text
    Runner(**parts | {"optim": parts["optim"] | {"lr": 0.5}}, resume=True).prepare()
    assert ("keeps the value of the checkpoint, 0.01" in caplog.text) == (not scheduled)


class KeepsModels(NoTracker):
    log_model = "kept"


@pytest.mark.parametrize("interrupted", [False, True])
def test_only_a_run_that_was_not_interrupted_names_its_models(parts: Any, tmp_path: Path, interrupted: bool) -> None:
    """Checkpoints of an interrupted run are gone when the resumed run has finished, and its models are logged."""
    hooks = {"checkpoint": Checkpoint()} | ({"interrupt": InterruptAt(3)} if interrupted else {})
    runner = Runner(**parts | {"hooks": hooks, "work_dir": tmp_path, "tracker": KeepsModels()})
    runner.train()
    with current_job(OmegaConf.create({"hydra": {"output_subdir": None, "job": {"name": "train"}}})):
        record.name_artifacts(runner, runner.members)
    kinds = [line["kind"] for line, _ in read(tmp_path / "metrics.jsonl")]
    assert ("model" in kinds) is not interrupted
