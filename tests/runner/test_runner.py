"""The Runner as it is used from Python: its arguments, what a run leaves, what it starts from, what it refuses."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from trainyard import rng_state
from trainyard.data import Rings
from trainyard.errors import ConfigError, TrainyardError
from trainyard.hooks import EMA, Checkpoint, EarlyStopping, Hook, ParamSchedule
from trainyard.metrics import Accuracy, CrossEntropy
from trainyard.models import MLP
from trainyard.rng import derive
from trainyard.runner import Env, EpochBasedTrainLoop, Runner, TestLoop, ValLoop, checkpoint
from trainyard.schedules import Plateau, Schedule
from trainyard.track import NoTracker, read

ROOT = Path(__file__).parents[2]
COSINE = {"_target_": "torch.optim.lr_scheduler.CosineAnnealingLR", "_partial_": True, "T_max": "auto"}


@pytest.fixture
def make(parts: Any) -> Any:
    """A small Runner; keywords replace its arguments."""
    return lambda **more: Runner(**(parts | more))


def bits(runner: Any) -> Any:
    return torch.cat([tensor.flatten().double() for tensor in runner.model.state_dict().values()])


def trained(runner: Any) -> Any:
    runner.train()
    return bits(runner)


def records(folder: Any, kind: Any) -> Any:
    return [record for record, _ in read(folder / "metrics.jsonl") if record["kind"] == kind]


# -- arguments ---------------------------------------------------------------------------------------------------------


def _model() -> Any:
    with rng_state.seeded(derive(0, "init")):
        return MLP(in_features=2, num_classes=2, hidden=[16])


OBJECTS = {
    "model": _model,
    "data": lambda: Rings(num_samples=320, batch_size=32),
    "optim": lambda: partial(torch.optim.Adam, lr=0.01),
    "schedule": lambda: Schedule(partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max="auto")),
    "hooks": lambda: {"ema": EMA(0.9), "schedule": ParamSchedule()},
    "metrics": lambda: {"accuracy": Accuracy(), "loss": CrossEntropy()},
    "loop": lambda: EpochBasedTrainLoop(3),
    "tracker": NoTracker,
    "env": Env,
    "val_loop": ValLoop,
    "test_loop": TestLoop,
}


@pytest.fixture
def configs(parts: Any) -> Any:
    return parts | {
        "schedule": {"_target_": "trainyard.schedules.Schedule", "scheduler": COSINE},
        "hooks": {
            "ema": {"_target_": "trainyard.hooks.EMA", "decay": 0.9},
            "schedule": {"_target_": "trainyard.hooks.ParamSchedule"},
        },
        "tracker": {"_target_": "trainyard.track.NoTracker"},
        "env": {"_target_": "trainyard.runner.Env"},
        "val_loop": {"_target_": "trainyard.runner.ValLoop"},
        "test_loop": {"_target_": "trainyard.runner.TestLoop"},
    }


@pytest.mark.parametrize("argument", [*OBJECTS, "all"])
def test_every_argument_is_the_object_or_its_config(configs: Any, argument: Any) -> None:
    chosen = OBJECTS if argument == "all" else {argument: OBJECTS[argument]}
    expected = Runner(**configs)
    runner = Runner(**(configs | {name: make_object() for name, make_object in chosen.items()}))
    assert torch.equal(trained(runner), trained(expected))
    results = [{k: v for k, v in r.members[0].metrics.items() if k[:4] == "val/"} for r in (runner, expected)]
    assert results[0] == results[1] != {}


def test_an_optimizer_that_is_built_already(make: Any) -> None:
    model = _model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    runner = make(model=model, optim=optimizer)
    assert torch.equal(trained(runner), trained(make()))
    assert runner.optimizer is optimizer


def test_loaders_of_ones_own(make: Any, tmp_path: Path) -> None:
    data = Rings(num_samples=320).sources
    loaders = {
        "train": {"_target_": ("torch.utils.data.DataLoader"), "dataset": list(zip(*data["train"], strict=True))},  # type: ignore[misc]
        "val": DataLoader(list(zip(*data["val"], strict=True)), batch_size=64),  # type: ignore[misc]
        "spec": {"in_features": 2, "num_classes": 2},
    }
    loaders["train"] |= {"batch_size": 32, "shuffle": True}
    runner = make(data=loaders, work_dir=tmp_path)
    assert runner.train()[0]["val/accuracy"] > 0.4
    assert runner.iter == 3 * len(runner.loader("train"))


def test_what_is_not_needed_is_not_built(make: Any) -> None:
    """None of these can be built; validating asks for none of them."""
    broken = {
        "optim": {"_target_": "torch.optim.Adam", "_partial_": True, "lr": -1},
        "schedule": {"_target_": "trainyard.schedules.Schedule", "by": "year"},
        "loop": {"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": 0},
    }
    runner = make(**broken)
    assert "val/accuracy" in runner.val()[0]
    assert "test/accuracy" in runner.test()[0]
    assert not {"optimizer", "schedule", "train_loop", "step"} & vars(runner).keys()
    assert runner.loaders.keys() == {"val", "test"}
    with pytest.raises(ConfigError, match=r"loop\.max_epochs: 0 is invalid"):
        runner.train()


def test_a_runner_builds_nothing_before_it_runs() -> None:
    Runner(model={"_target_": "no.such.Model"}, data={"_target_": "no.such.Data"}, hooks={"x": {"_target_": "no.Hook"}})


def test_auto_is_what_the_data_says(make: Any) -> None:
    runner = make(metrics={"accuracy": {"_target_": "trainyard.metrics.Accuracy"}})
    assert runner.model_config["in_features"] == 2
    assert runner.model.net[-1].out_features == 2
    with pytest.raises(
        ConfigError,
        match=r"model\.vocab_size: 'auto' is invalid. Expected an explicit value, because this data defines only",
    ):
        _ = make(model={"_target_": "trainyard.models.Transformer", "vocab_size": "auto"}).model
    with pytest.raises(ConfigError, match="no data from which the value can be inferred"):
        _ = make(data=None).model


def test_compile_gives_the_same_bits(make: Any) -> None:
    with torch.compiler.set_stance("force_eager"):  # the wiring, without the minutes of a compiler
        assert torch.equal(trained(make(compile=True)), trained(make()))


def test_the_script_of_the_documentation_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """docs/runner.md begins with a whole script of under 20 lines, which leaves nothing behind."""
    script = (ROOT / "docs/runner.md").read_text().split("```python\n")[1].split("```")[0]
    assert len(script.splitlines()) < 20
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.getLogger(), "handlers", list(logging.getLogger().handlers))
    exec(compile(script, "docs/runner.md", "exec"), {"__name__": "__main__"})
    assert float(capsys.readouterr().out) > 0.95
    assert list(tmp_path.iterdir()) == []


# -- running -----------------------------------------------------------------------------------------------------------


def test_without_a_directory_nothing_is_written(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runner = make()
    runner.train()
    runner.load_best()
    runner.test()
    assert list(tmp_path.iterdir()) == []


def test_training_evaluating_and_what_is_on_disk(make: Any, tmp_path: Path) -> None:
    runner = make(work_dir=tmp_path / "run")
    (metrics,) = runner.train()
    assert {"val/accuracy", "val/loss", "train/loss", "train/lr"} <= set(metrics)
    assert runner.val() == [{key: metrics[key] for key in ("val/accuracy", "val/loss")}]
    files = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert files == ["checkpoints", "metrics.jsonl", "run.json"]


def test_one_session_is_one_run(make: Any, tmp_path: Path) -> None:
    runner = make(work_dir=tmp_path)
    with runner.session():
        runner.train()
        runner.load_best()
        runner.test()
    assert [record["status"] for record in records(tmp_path, "status")] == ["RUNNING", "FINISHED"]


def test_how_a_run_ended_is_in_the_journal(make: Any, tmp_path: Path) -> None:
    class End(Hook):
        def __init__(self, end: Any) -> None:
            self.end = end

        def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
            self.end(runner)

    def fail(runner: Any) -> None:
        raise LookupError("mine")

    ends = {
        ("FINISHED", ""): lambda runner: runner.members[0].stop("enough"),
        ("FAILED", "broken"): lambda runner: runner.members[0].stop("broken", failed=True),
        ("FAILED", "LookupError: mine"): fail,
        ("KILLED", "interrupted"): Runner.interrupt,
    }
    for number, (expected, end) in enumerate(ends.items()):
        runner = make(work_dir=tmp_path / str(number), hooks={"end": End(end)})
        try:
            runner.train()
        except LookupError:
            assert end is fail
        last = records(tmp_path / str(number), "status")[-1]
        assert (last["status"], last["message"]) == expected


def test_results_that_are_no_numbers_are_journaled_as_arrays(parts: Any, make: Any, tmp_path: Path) -> None:
    parts["metrics"]["confusion"] = {"_target_": "trainyard.metrics.ConfusionMatrix"}
    (metrics,) = make(work_dir=tmp_path).train()
    assert "val/confusion" not in metrics
    arrays = records(tmp_path, "array")
    assert [(record["name"], record["step"]) for record in arrays] == [("val/confusion", step) for step in (6, 12, 18)]
    assert sum(map(sum, arrays[0]["value"])) == 64


def test_training_a_finished_run_again_does_nothing(make: Any, tmp_path: Path) -> None:
    runner = make(work_dir=tmp_path)
    before = trained(runner)
    saved = checkpoint.read_last(tmp_path / "checkpoints")
    assert torch.equal(trained(runner), before)
    assert checkpoint.read_last(tmp_path / "checkpoints") == saved


# -- what a run starts from --------------------------------------------------------------------------------------------


@pytest.fixture
def finished(make: Any, tmp_path: Path) -> Any:
    """A run of three epochs with averaged weights, each epoch's checkpoint kept."""
    runner = make(work_dir=tmp_path / "finished", hooks={"ema": EMA(0.9), "checkpoint": Checkpoint(max_keep=None)})
    runner.train()
    return runner


def test_load_from_takes_the_weights_that_were_evaluated(finished: Any, make: Any) -> None:
    path = finished.members[0].checkpoints / "epoch_0003.pt"
    runner = make(load_from=path)
    assert runner.val() == finished.val()
    averaged = finished.eval_model.state_dict()
    assert all(torch.equal(weight, averaged[name]) for name, weight in runner.model.state_dict().items())
    assert not torch.equal(bits(runner), bits(finished)), "not the weights of the last step"
    assert (runner.epoch, runner.iter) == (0, 0)


def test_load_from_begins_a_training_anew(finished: Any, make: Any) -> None:
    runner = make(load_from=finished.members[0].checkpoints / "epoch_0003.pt")
    runner.prepare()
    assert not runner.optimizer.state
    assert runner.train()[0]["val/loss"] < make().train()[0]["val/loss"]
    assert (runner.epoch, runner.iter) == (3, 18)


def test_the_best_weights_are_loaded(finished: Any, make: Any) -> None:
    finished.load_best()
    best = checkpoint.load(finished.members[0].checkpoints / "best.pt")
    assert finished.val() == [{key: best["member"]["metrics"][key] for key in ("val/accuracy", "val/loss")}]


def test_resume_by_path_into_another_directory(finished: Any, make: Any, tmp_path: Path) -> None:
    """The run goes on there as it would have gone on here, and the first directory stays as it is."""
    source = finished.members[0].checkpoints
    before = sorted((path.name, path.stat().st_mtime_ns) for path in source.iterdir())
    hooks = {"ema": EMA(0.9), "checkpoint": Checkpoint()}
    runner = make(work_dir=tmp_path / "other", resume=source / "epoch_0002.pt", hooks=hooks)
    assert torch.equal(trained(runner), bits(finished))
    assert checkpoint.read_last(tmp_path / "other" / "checkpoints") == ["epoch_0003.pt"]
    assert sorted((path.name, path.stat().st_mtime_ns) for path in source.iterdir()) == before
    steps = {record["step"] for record in records(tmp_path / "other", "metrics")}
    assert min(steps) > 12, "the journal there begins where the checkpoint ends"


def test_the_best_of_another_directory_is_left_there(make: Any, tmp_path: Path) -> None:
    """What is named as the best always has its file."""
    still = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.0}  # the first is the best
    hooks = {"checkpoint": {"_target_": "trainyard.hooks.Checkpoint"}}  # which saves at every epoch
    make(work_dir=tmp_path / "one", optim=still, hooks=hooks).train()
    runner = make(work_dir=tmp_path / "two", optim=still, resume=tmp_path / "one/checkpoints/epoch_0002.pt")
    runner.train()
    assert runner.members[0].best.epoch == 3
    assert (tmp_path / "two/checkpoints/best.pt").exists()
    here = make(work_dir=tmp_path / "one", optim=still, resume=tmp_path / "one/checkpoints/epoch_0002.pt")
    here.train()
    assert here.members[0].best.epoch == 1


def test_resume_comes_before_load_from(finished: Any, make: Any, tmp_path: Path) -> None:
    """One command line serves the first start and every later one."""
    weights = finished.members[0].checkpoints / "best.pt"
    again = {"work_dir": tmp_path / "again", "load_from": weights, "resume": True}
    first = make(**again, loop=EpochBasedTrainLoop(1))
    first.train()
    second = make(**again)
    second.prepare()
    assert (second.epoch, second.iter) == (1, 6)
    assert torch.equal(bits(second), bits(first))


DATA = {"_target_": "trainyard.data.Rings", "num_samples": 320, "batch_size": 64}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"optim": partial(torch.optim.SGD, lr=0.1)}, "its optimizer is Adam, but this run has SGD"),
        ({"data": DATA}, "it has 6 batches per epoch, but this run has 3"),
        ({"schedule": Plateau()}, "it has no schedule, but this run has Plateau"),
        ({"model": MLP(in_features=2, num_classes=2, hidden=[5])}, "net.1.weight has shape [16, 2] instead of [5, 2]"),
    ],
    ids=["optim", "data", "schedule", "model"],
)
def test_a_checkpoint_of_another_training(finished: Any, make: Any, tmp_path: Path, settings: Any, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        make(work_dir=tmp_path / "other", resume=finished.members[0].checkpoints / "epoch_0002.pt", **settings).train()
    assert told in str(error.value)
    assert not (tmp_path / "other").exists()


def test_another_seed_is_told(finished: Any, make: Any, caplog: pytest.LogCaptureFixture) -> None:
    runner = make(seed=5, resume=finished.members[0].checkpoints / "epoch_0002.pt")
    with caplog.at_level(logging.WARNING):
        runner.prepare()
    assert "was saved with seed 0, but this run has seed 5, so the order of the data can change" in caplog.text


def test_resuming_goes_on_with_the_optimizers_numbers(finished: Any, make: Any) -> None:
    """As the checkpoint has them: `load_from` begins with new ones."""
    path = finished.members[0].checkpoints / "epoch_0002.pt"
    rates = []
    for start in ("resume", "load_from"):
        runner = make(**{start: path}, optim=partial(torch.optim.Adam, lr=0.5))
        runner.prepare()
        rates.append(runner.optimizer.param_groups[0]["lr"])
    assert rates == [0.01, 0.5]


def test_a_schedule_follows_the_arguments_of_the_resumed_run(make: Any, tmp_path: Path) -> None:
    schedule = {"_target_": "trainyard.schedules.Schedule", "scheduler": COSINE}
    make(work_dir=tmp_path, schedule=schedule, loop=EpochBasedTrainLoop(1)).train()
    runner = make(work_dir=tmp_path, schedule=schedule, optim=partial(torch.optim.Adam, lr=0.5), resume=True)
    runner.train()
    assert runner.optimizer.param_groups[0]["lr"] == pytest.approx(0.125)  # the last third of half a cosine


def test_a_directory_that_holds_a_run(finished: Any, make: Any) -> None:
    with pytest.raises(ConfigError, match=r"work_dir: .* To continue the run in this directory, use resume=true"):
        make(work_dir=finished.work_dir).train()


def test_resume_needs_a_directory_or_a_path(make: Any) -> None:
    with pytest.raises(ConfigError, match=r"resume: True is invalid. Expected false or the path of a checkpoint"):
        make(resume=True).train()


# -- what it refuses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"model": nn.Linear(2, 2)}, "model: 'Linear' is invalid. Expected a module whose forward takes `mode`"),
        ({"model": nn.Linear(2, 2)}, "trainyard.models.Supervised(net, loss) turns any"),
        ({"model": None}, "model: 'NoneType' is invalid"),
        ({"loop": None}, "loop: None is invalid. Expected a training loop, for example EpochBasedTrainLoop"),
        ({"optim": None}, "optim: None is invalid. Expected an optimizer"),
        (
            {"optim": torch.optim.SGD(nn.Linear(2, 2).parameters())},
            "optim: 'SGD' is invalid. Expected an optimizer of this",
        ),
        ({"data": None, "model": _model()}, "data: None is invalid. Expected data with the split train"),
        (
            {"data": {"val": DataLoader([1])}, "model": _model()},
            "data: there is no split train, only val. Expected data with this split.",
        ),
        ({"data": {"trian": DataLoader([1])}}, "Did you mean 'train'?"),
        ({"data": [1, 2]}, "data: [1, 2] is invalid. Expected a trainyard.data.Data"),
        ({"objective": "val/acc"}, "objective: No metric named 'val/acc'. This run computes val/accuracy"),
        ({"metrics": {}}, "This run computes val/loss"),
        ({"direction": "max"}, "direction: 'max' is invalid. Expected maximize or minimize"),
        ({"schedule": Plateau(monitor="val/los")}, "schedule.monitor: No metric named 'val/los'"),
        ({"hooks": {"stop": EarlyStopping(monitor="val/los")}}, "hook.stop.monitor: No metric named 'val/los'"),
        ({"hooks": [EMA()]}, "hook: 'list' is invalid. Expected a mapping from names"),
        ({"hooks": {"ema": EMA}}, "Expected a trainyard.hooks.Hook, its config"),
        ({"hooks": {"ema": {"decay": 0.9}}}, "If the group `hook` has the option ema, select it with hook=ema"),
        ({"metrics": {"a": {"topk": 1}}}, "metric.a: {'topk': 1} is invalid. Expected a trainyard.metrics.Metric"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_is_told_and_leaves_nothing(make: Any, tmp_path: Path, settings: Any, told: str) -> None:
    with pytest.raises(TrainyardError) as error:
        make(**settings, work_dir=tmp_path / "run").train()
    assert told in str(error.value)
    assert not (tmp_path / "run").exists()


def test_an_early_stop_may_watch_the_training(make: Any) -> None:
    stop = EarlyStopping(monitor="train/loss", patience=1)
    runner = make(hooks={"logger": {"_target_": "trainyard.hooks.Logger", "interval": 2}, "stop": stop})
    assert "train/loss" in runner.train()[0]
