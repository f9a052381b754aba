"""`python train.py …` as a user runs it: whole processes, a real MLflow store, real signals."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Forked
from open_files import open_files
from same_run import points
from waiting import LIMIT

from trainyard.run.record import NOT_PARAMS, load_model
from trainyard.runner import checkpoint

ROOT = Path(__file__).parents[2]


def _last(folder: Any) -> Any:
    return checkpoint.load(folder / "checkpoints" / checkpoint.read_last(folder / "checkpoints")[-1])


def test_help_shows_the_groups(train: Any) -> None:
    result = train("--help", quick=False)
    assert result.returncode == 0
    for group in ("model: cnn, lightning, mlp, resnet, ", "data: ", "optim: ", "schedule: ", "hook: ", "experiment: "):
        assert group in result.stdout, result.stdout


def test_the_first_line_comes_before_all_that_takes_long(tmp_path: Path) -> None:
    """It names the model and the data; what is imported by then is Hydra and little else."""
    (tmp_path / "first_line.py").write_text(
        "import os, sys\n"
        "from trainyard.app import main\n"
        "class Output:\n"
        "    def write(self, text):\n"
        "        heavy = {'torch', 'numpy', 'mlflow', 'optuna', 'rich', 'pandas'} & set(sys.modules)\n"
        "        os.write(1, f'{text}; {sorted(heavy)}'.encode())\n"
        "        os._exit(0)\n"
        "    def isatty(self):\n"
        "        return False\n"
        "sys.stdout = Output()\n"
        f"main({str(ROOT / 'conf')!r})\n"
    )
    command = [sys.executable, "first_line.py", "model=cnn", "hydra.run.dir=run"]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.stdout == "Training cnn on digits, in run; []", done.stderr


def test_the_whole_config_is_printed(train: Any) -> None:
    result = train("--cfg", "job", "--resolve", "work_dir=here", quick=False)
    assert result.returncode == 0, result.stderr
    assert "_target_: trainyard.models.MLP" in result.stdout
    assert "${" not in result.stdout


def test_tab_completion(train: Any) -> None:
    line = "train.py model=tr"
    result = train("-sc", "query=bash", quick=False, env={"COMP_LINE": line, "COMP_POINT": str(len(line))})
    assert "model=transformer" in result.stdout, result.stderr


def test_train_then_test_the_checkpoint(train: Any, tmp_path: Path) -> None:
    result = train("hydra.run.dir=run")
    assert result.returncode == 0, result.stderr
    assert "Best val/accuracy" in result.stdout
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        ".hydra", "checkpoints", "config.yaml", "example.npy", "git.diff", "metrics.jsonl", "run.json", "train.log",
    ] or not (tmp_path / "run/git.diff").exists()  # fmt: skip
    assert "\x1b" not in result.stdout, "no escape codes where there is no terminal"

    trained = points(tmp_path / "run")
    tested = train("hydra.run.dir=tested", "mode=test", "load_from=run/checkpoints/best.pt")
    assert tested.returncode == 0, tested.stderr
    names = {key: value for (key, _), value in points(tmp_path / "tested").items()}
    assert names == {key: value for (key, _), value in trained.items() if key.startswith("test/")}


def test_a_run_in_a_process_that_goes_on_leaves_no_open_file(command: Any, tmp_path: Path) -> None:
    status, message = command("hydra.run.dir=run")
    assert status == 0, message
    assert (tmp_path / "folder/run/metrics.jsonl").exists()
    assert open_files(tmp_path) == []
    status, message = command("hydra.run.dir=run", "resume=true", "loop.max_epochs=3")
    assert status == 0, message
    assert open_files(tmp_path) == []


def test_a_sweep_by_hydras_own_means(train: Any, tmp_path: Path) -> None:
    result = train("-m", "optim.lr=0.01,0.001", "hydra.sweep.dir=sweep", "hydra/launcher=basic")
    assert result.returncode == 0, result.stderr
    rates = [points(tmp_path / "sweep" / job)["train/lr", 6] for job in ("0", "1")]
    assert rates == [0.01, 0.001]


def test_tracked_in_mlflow(train: Any, tmp_path: Path) -> None:
    """One run: its params, curves, artifacts, model; killed, resumed, and still one run with every point once."""
    import mlflow
    from mlflow.tracking import MlflowClient

    tracked = ["tracker=mlflow", "hydra.run.dir=run", "loop.max_epochs=3", "hook.logger.interval=2"]
    tracked += ["hook.checkpoint.min_seconds=0", f"tracker.wait={LIMIT}"]
    killer = tmp_path / "killer.py"
    killer.write_text(
        "import os, signal\nfrom trainyard.hooks import Hook\n"
        "class Kill(Hook):\n    def after_train_iter(self, runner, batch_idx, data_batch, outputs):\n"
        "        if runner.iter == 7:\n            os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{tmp_path}"}
    killed = train(*tracked, "+hook.kill._target_=killer.Kill", env=path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    # A weight decay is not read on resume, so that it does not change.
    resumed = train(*tracked, "resume=true", "clip_grad_norm=100", "optim.weight_decay=0.1")
    assert resumed.returncode == 0, resumed.stderr
    step = re.search(r"Resumed .*, iteration (\d+)", resumed.stdout)[1]
    assert f"Changed on resume (also a tag of the run): clip_grad_norm@{step}=100." in resumed.stdout
    assert "mlflow ui --backend-store-uri sqlite:///mlflow.db" in resumed.stdout
    assert "not uploaded to MLflow" not in resumed.stdout
    assert "not in MLflow" not in resumed.stdout

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("trainyard").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["model"] == "mlp"
    assert run.data.params["optim"] == "adam"
    assert run.data.params["optim.lr"] == "0.001"
    assert run.data.params["seed"] == "0"
    assert run.data.params["clip_grad_norm"] == "None"
    assert run.data.tags[f"clip_grad_norm_{step}"] == "100"
    assert {key.partition(".")[0] for key in run.data.params}.isdisjoint(NOT_PARAMS)
    assert "experiment" not in run.data.params  # nothing of that group was chosen

    assert run.data.metrics["best/val/accuracy"] == max(
        point.value for point in client.get_metric_history(run.info.run_id, "val/accuracy")
    )
    (best,) = {
        p.step
        for p in client.get_metric_history(run.info.run_id, "best/val/accuracy")
        if p.step == run.data.metrics["best/step"]
    }
    assert run.data.tags["test.checkpoint"] == f"best.pt, epoch {run.data.metrics['best/epoch']:.0f}, step {best}"
    assert {each.dataset.name for each in run.inputs.dataset_inputs} == {"rings/train", "rings/val", "rings/test"}
    (model,) = client.search_logged_models([run.info.experiment_id])
    assert {"val/accuracy", "val/loss", "test/accuracy"} <= {metric.key for metric in model.metrics}

    journal = points(tmp_path / "run")
    assert {step for key, step in journal if key == "train/loss"} == {2, 4, 6, 8, 9}
    for name in ("train/loss", "val/accuracy", "val/loss"):
        history = [(name, point.step) for point in client.get_metric_history(run.info.run_id, name)]
        assert sorted(history) == sorted(key for key in journal if key[0] == name)

    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "train.log", ".hydra", "checkpoints"} <= files

    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    logged = mlflow.pytorch.load_model(f"runs:/{run.info.run_id}/model").eval()
    own, example = load_model(tmp_path / "run", tmp_path / "run/checkpoints/best.pt")
    x = torch.randn(64, *example.shape[1:])
    with torch.no_grad():
        assert torch.equal(logged(x), own(x))


def test_no_mlflow_server_never_stops_training(train: Any, tmp_path: Path) -> None:
    env = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_EXPERIMENT_ID": "7", "MLFLOW_RUN_NAME": "mine"}
    result = train("tracker=mlflow", "hydra.run.dir=run", "tracker.wait=2", env=env)
    assert result.returncode == 0, result.stderr
    assert "Best val/accuracy" in result.stdout
    assert "trainyard sync" in result.stdout
    info = json.loads((tmp_path / "run/run.json").read_text())
    assert [info[key] for key in ("uri", "experiment_id", "name")] == list(env.values())


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_resumed(train: Any, tmp_path: Path, signum: Any) -> None:
    """The first signal saves a checkpoint; the resumed run ends with the bits of the undisturbed one."""
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import time\nfrom trainyard.hooks import Hook\n"
        "class Slow(Hook):\n    def after_train_iter(self, runner, batch_idx, data_batch, outputs):\n"
        "        if runner.iter == 5:\n            print('at 5', flush=True)\n"
        "            while not runner.interrupted:\n                time.sleep(0.01)\n"
    )
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        *train.quick,
        "hydra.run.dir=run",
        "+hook.slow._target_=slow.Slow",
    ]
    env = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{tmp_path}", "OMP_NUM_THREADS": "1"}
    process = Forked(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for line in process.stdout:
        if "at 5" in line:
            break
    process.send_signal(signum)
    _, stderr = process.communicate(timeout=LIMIT)
    assert process.returncode == 128 + signum, stderr
    assert "resume=true" in stderr
    assert _last(tmp_path / "run")["iter"] == 5

    assert train("hydra.run.dir=run", "resume=true").returncode == 0
    assert train("hydra.run.dir=undisturbed").returncode == 0
    assert points(tmp_path / "run") == points(tmp_path / "undisturbed")
    a, b = _last(tmp_path / "run"), _last(tmp_path / "undisturbed")
    assert all(torch.equal(a["model"][name], b["model"][name]) for name in b["model"])
