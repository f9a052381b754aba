"""Each mistake ends in one readable paragraph with status 2, and nothing is left behind.

Most are tried in this process (composing and training is what `train.py` does, without the seconds that importing torch
takes); `test_command_line.py` has the whole command.
"""

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainyard.app import main
from trainyard.runner import checkpoint


def _left(folder: Any) -> Any:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["model=mpl"],
            [
                "model: 'mpl' is invalid",
                "cnn, lightning, mlp, resnet, timm, torchvision, transformer, transformers",
                "Did you mean 'mlp'?",
            ],
        ),
        (["hook=[default,emma]"], ["hook: 'emma' is invalid", "Did you mean 'ema'?"]),
        (["experiment=digits"], ["Did you mean 'digits_cnn'?"]),
        (["optm.lr=1"], ["optm.lr", "Did you mean 'optim'?"]),
        (["optim.lrr=1"], ["optim.lrr", "Did you mean 'lr'?"]),
        (["optm=adam"], ["'optm' is invalid", "Did you mean 'optim'?"]),
        (["hook.logger.intervall=3"], ["Did you mean 'interval'?"]),
        (["~optim.lrr"], ["optim.lrr", "Did you mean 'lr'?"]),
        (["optim.lr=[1"], ["'optim.lr=[1' is not a valid override"]),
        (["optim._target_=torch.optim.Adm"], ["optim._target_", "Did you mean 'torch.optim.Adam'?"]),
        (["optim._target_=toch.optim.Adam"], ["there is no module 'toch'"]),
        (["+optim.weightdecay=0.1"], ["optim: 'weightdecay' is invalid", "Did you mean 'weight_decay'?"]),
        (["~model.in_features", "model._target_=torch.nn.Linear"], ["model"]),
        (["data=arrays"], ["data.path: '???' is invalid"]),
        (["data=arrays", "data.path=absent.csv"], ["data.path: 'absent.csv' is invalid"]),
        (["loop.max_epochs=-1"], ["loop.max_epochs: -1 is invalid", "at least 1"]),
        (["loop.max_epochs=many"], ["loop.max_epochs: 'many' is invalid"]),
        (["loop.val_interval=0"], ["loop.val_interval: 0 is invalid"]),
        (["data.batch_size=0"], ["data.batch_size: 0 is invalid"]),
        (["model.hidden=[0]"], ["model.hidden"]),
        (["model.num_classes=1"], ["model.num_classes: 1 is invalid. Expected auto, or 2, as in the data."]),
        (["model.in_features=10"], ["model.in_features: 10 is invalid. Expected auto, or 2", "Layer net.1 (Linear("]),
        (["model.batch_norm=true", "data.batch_size=1"], ["data.batch_size: 1 is invalid. Expected at least 2."]),
        (["model.hidden=[1000000000000000]"], ["model.hidden.0: 1000000000000000 is invalid", "GiB would be needed"]),
        (["-m", "optim.lr=interval(0,1)"], ["optim.lr: 'interval(0,1)' is invalid. Expected values", "=search"]),
        (["model=transformer"], ["model.vocab_size: 'auto' is invalid", "num_classes"]),
        (["optim.lr=-1"], ["optim.lr: -1 is invalid", "at least 0"]),
        (["schedule=step", "schedule.scheduler.step_size=0"], ["schedule.scheduler.step_size"]),
        (["seed=abc"], ["seed: 'abc' is invalid. Expected a non-negative integer"]),
        (["seed=-1"], ["seed: -1 is invalid"]),
        (["mode=tset"], ["mode: 'tset' is invalid", "Did you mean 'test'?"]),
        (["mode=test"], ["load_from"]),
        (["device=coda"], ["device: 'coda' is invalid"]),
        (["precision=fp23"], ["precision: 'fp23' is invalid", "Did you mean 'fp32'?"]),
        (["accumulate=0"], ["accumulate: 0 is invalid"]),
        (["work_dir=null"], ["work_dir: None is invalid. Expected the directory of the run: "]),
        (["work_dir=3"], ["work_dir: 3 is invalid"]),
        (["work_dir=''"], ["work_dir: '' is invalid. Expected the directory of the run: "]),
        (["test_loop=abc"], ["test_loop: 'str' is invalid. Expected an object with the attributes"]),
        (["val_loop=''"], ["val_loop: 'str' is invalid"]),
        (["hydra.job.name=a/b"], ["hydra.job.name: 'a/b' is invalid. Expected the name of the log file"]),
        (["hydra.output_subdir=../x"], ["hydra.output_subdir: '../x' is invalid. Expected a folder"]),
        (["-m", "seed=range(3,1)"], ["seed: 'range(3,1)' is invalid. Expected a range that contains a value."]),
        (["-m", "seed=range(0,3,0)"], ["seed: 'range(0,3,0)' is invalid. Expected a range that contains a value."]),
        (["-m", "hydra.sweeper.params=3"], ["hydra.sweeper.params: 3 is invalid. Expected a mapping from keys"]),
        (["-m", "seed=0,1", "hydra.launcher._target_=abc"], ["hydra.launcher: Hydra cannot build this config."]),
        (["-m", "seed=0,1", "hydra.sweeper._target_=3"], ["hydra.sweeper: Hydra cannot build this config."]),
        (["optim=sam", "optim.base.momentum=-1"], ["optim.base.momentum: -1 is invalid. Expected a number"]),
        (["optim=sam", "optim.base.momentum=nan"], ["optim.base.momentum: nan is invalid. Expected a finite number"]),
        (["optim=sam", "optim.lr=1e400"], ["optim.lr: inf is invalid"]),
        (["optim=sam", "optim.base=3"], ["optim.base: 3 is invalid. Expected a config with `_partial_: true`"]),
        (["optim=lbfgs", "optim.history_size=0"], ["optim.history_size: 0 is invalid. Expected an integer of at"]),
        (["optim=lbfgs", "optim.lr=0"], ["optim.lr: 0 is invalid. Expected a number above 0"]),
        (["optim=lbfgs", "optim.line_search_fn=x"], ["optim.line_search_fn: 'x' is invalid. Expected one of"]),
        (["schedule=onecycle", "schedule.scheduler.div_factor=0"], ["schedule.scheduler.div_factor: 0 is invalid"]),
        (["schedule=onecycle", "schedule.scheduler.max_lr=-1"], ["schedule.scheduler.max_lr: -1 is invalid"]),
        (["clip_grad_norm=0"], ["clip_grad_norm: 0"]),
        (["objective=val/acc"], ["objective: No metric named 'val/acc'", "Did you mean 'val/accuracy'?"]),
        (["direction=up"], ["direction: 'up' is invalid", "maximize or minimize"]),
        (["hook.checkpoint.max_keep=0"], ["hook.checkpoint.max_keep"]),
        (["load_from=absent.pt"], ["load_from: 'absent.pt' is invalid"]),
        (["resume=absent.pt"], ["resume: 'absent.pt' is invalid"]),
        (["resume=3"], ["resume: 3 is invalid"]),
        (["model.hidden=${nowhere}"], ["nowhere"]),
        (["tracker=mlflow", "tracker.uri=file:///tmp/mlruns"], ["tracker.uri", "sqlite:///mlflow.db"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and "=" in value[0] else "",
)
def test_a_mistake_is_told_and_leaves_nothing(command: Any, arguments: Any, told: Any) -> None:
    other = arguments[0].startswith(("data=", "model=t"))
    status, message = command(*arguments, **({"quick": ["tracker=none"]} if other else {}))
    assert status == 2, message
    for text in told:
        assert text in message
    assert len(message.strip().splitlines()) == 1, "one paragraph"
    assert "Traceback" not in message
    assert _left(Path.cwd()) == []


@pytest.mark.parametrize(("key", "value"), [("hydra.output_subdir", "../x"), ("hydra.job.name", "a/b")])
def test_a_name_of_hydras_files_is_told_for_all_jobs_of_a_sweep(command: Any, key: str, value: str) -> None:
    status, message = command("-m", "seed=0,1", f"{key}={value}", quick=["tracker=none"])
    assert status == 2, message
    assert message.startswith(f"Nothing was started.\n{key}: '{value}' is invalid. Expected ")
    assert "in 2 of 2 jobs, first in #0: seed=0" in message
    assert _left(Path.cwd()) == []


@pytest.mark.parametrize("value", ["abc", 3, True, [1], {"a": 1}])
@pytest.mark.parametrize("group", ["model", "data", "optim", "schedule", "loop", "metric", "hook", "env", "tracker"])
def test_a_value_in_place_of_a_part(command: Any, group: str, value: Any) -> None:
    """An experiment, or a primary config, may replace the whole of a group."""
    Path("own").mkdir()
    lines = ["defaults: [train]"] if group == "data" else ["defaults: [train, {override data: rings}]"]
    Path("own/mine.yaml").write_text("\n".join([*lines, f"{group}: {value if value is not True else 'true'}\n"]))
    status, message = command("-cp", "own", "-cn", "mine", quick=[] if group == "tracker" else ["tracker=none"])
    assert status == 2, message
    assert "Traceback" not in message
    assert f"{group}" in message.partition(" is invalid")[0]
    assert _left(Path.cwd()) == ["own", "own/mine.yaml"]


@pytest.mark.parametrize("key", ["mode", "quick", "seed", "device", "sanity_check", "resume"])
def test_settings_that_were_removed_have_their_defaults(command: Any, key: str) -> None:
    status, message = command(f"~{key}", "hydra.run.dir=run")
    assert status == 0, message


def test_a_directory_that_cannot_be_made(command: Any) -> None:
    Path("file").write_text("")
    status, message = command("hydra.run.dir=file/run")
    assert (status, "hydra.run.dir: 'file/run' is invalid" in message) == (2, True), message
    assert _left(Path.cwd()) == ["file"]


def test_arrays_of_the_wrong_shape(command: Any) -> None:
    np.savez("points.npz", x=np.zeros((10, 2), np.float32), y=np.zeros(9, np.int64))
    status, message = command("data=arrays", "data.path=points.npz", quick=["tracker=none"])
    assert status == 2
    assert "10" in message
    assert "9" in message
    assert _left(Path.cwd()) == ["points.npz"]


def test_checkpoints_that_do_not_fit(command: Any) -> None:
    status, message = command("hydra.run.dir=run")
    assert status == 0, message
    before = _left(Path.cwd())
    best = Path("run/checkpoints/best.pt")

    status, message = command("model.hidden=[9]", f"load_from={best}", "hydra.run.dir=other")
    assert status == 2
    assert "a checkpoint of this model (MLP)" in message
    assert "shape" in message

    status, message = command("optim=sgd", f"resume={best}", "hydra.run.dir=other")
    assert status == 2, message

    Path("cut.pt").write_bytes(best.read_bytes()[:5000])
    status, message = command("load_from=cut.pt", "hydra.run.dir=other")
    assert (status, "load_from: 'cut.pt' is invalid. Expected a complete checkpoint" in message) == (2, True)

    status, message = command("hydra.run.dir=run")
    assert (status, "To continue the run in this directory, use resume=true" in message) == (2, True)
    assert _left(Path.cwd()) == sorted([*before, "cut.pt"])
    assert checkpoint.newest(Path("run/checkpoints")) is not None


def test_a_failed_training_has_status_1(command: Any) -> None:
    status, message = command("optim=sgd", "optim.lr=1e30", "hook=[default,nan_guard]", "hydra.run.dir=run")
    assert status == 1
    assert "The training failed: the loss is" in message


def test_an_error_in_the_users_own_code_keeps_its_traceback(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "code_of_a_user.py").write_text("def make(**keywords):\n    raise LookupError('in my code')\n")
    monkeypatch.syspath_prepend(tmp_path)
    status, message = command("model._target_=code_of_a_user.make", "hydra.run.dir=run")
    assert status == 1
    assert "code_of_a_user.py" in message
    assert "LookupError: in my code" in message
    assert "hydra/core" not in message, "frames of Hydra help nobody"


def test_train_py_is_the_application() -> None:
    assert runpy.run_path(str(Path(__file__).parents[2] / "train.py"), run_name="imported")["main"] is main
