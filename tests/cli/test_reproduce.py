"""`trainyard reproduce` and `rerun`: a run again, from its directory and from MLflow."""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import forked
import pytest
import yaml
from waiting import LIMIT

ROOT = Path(__file__).parents[2]
QUICK = ["data=rings", "data.num_samples=120", "loop.max_epochs=1", "model.hidden=[4]", "name=tracked"]


@pytest.fixture(autouse=True)
def _forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start trainings by fork: as the command would start them, at next to no cost."""

    def run(command: Any, **options: Any) -> int:
        env = options["env"] | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
        return forked.run(command, cwd=options["cwd"], env=env, timeout=LIMIT).returncode

    def replace_process(command: Any, folder: Path, environment: Any) -> None:
        sys.exit(run(command, cwd=folder, env=environment))

    monkeypatch.setattr("trainyard.cli.reproduce.run_to_end", run)
    monkeypatch.setattr("trainyard.cli.rerun.replace_process", replace_process)


@pytest.fixture(scope="session")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that is in MLflow, too."""
    folder = tmp_path_factory.mktemp("tracked")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW")}
    environment |= {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "train.py"), *QUICK, "tracker.log_model=false"]
    done = forked.run(command, cwd=folder, env=environment, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def copy(tracked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    return Path(shutil.copytree(tracked, tmp_path / "copy"))


def only(folder: Path) -> Path:
    (found,) = folder.glob("outputs/*/*/run.json")
    return found.parent


def test_a_run_is_reproduced_to_the_bit(trainyard: Any, tracked: Path, tmp_path: Path) -> None:
    before = (only(tracked) / "config.yaml").read_bytes()
    status, found, said = trainyard("reproduce", "tracked", "--to", tmp_path / "again", "--json", cwd=tracked)
    assert status == 0, said
    assert found["identical"]
    assert found["points"] > 3
    assert found["weights"] == []
    assert found["code"] == {}
    assert (only(tracked) / "config.yaml").read_bytes() == before
    again = json.loads((tmp_path / "again" / "run.json").read_text())
    assert again["uri"] is None, "it is not tracked"
    assert (again["params"]["model"], again["params"]["data"]) == ("mlp", "rings"), "the options of the first line"
    status, _, said = trainyard("rerun", tmp_path / "again", "optim.lr=0.5", cwd=tmp_path)
    assert status == 2
    assert "was made by `trainyard reproduce`" in said
    train = f"python {ROOT / 'train.py'} -cp {tmp_path / 'again'} -cn config KEY=VALUE"
    assert train in re.sub(r"\s+", " ", said)
    words = [sys.executable, *train.split()[1:-1], "optim.lr=0.5", "hydra.run.dir=other"]
    done = subprocess.run(words, cwd=tmp_path, env=dict(os.environ), check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "other" / "run.json").read_text())["params"]["optim.lr"] == "0.5"


def test_what_differs_is_said_with_status_3(trainyard: Any, copy: Path, tmp_path: Path) -> None:
    run = only(copy)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["optim"]["lr"] = 0.5
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    arguments = ("reproduce", run, "--to", tmp_path / "again")
    status, _, said = trainyard(*arguments, cwd=copy)
    assert status == 2
    assert "is not recognized as your own run (it may be a copy or a download)" in said
    assert "--trust" in said
    assert not (tmp_path / "again").exists()
    status, text, _ = trainyard(*arguments, "--trust", cwd=copy)
    assert status == 3
    assert "val/loss: first at iteration" in text
    assert "weights:" in text
    assert "weights: different in" in text


def test_a_run_whose_directory_is_gone_is_reproduced_from_mlflow(trainyard: Any, copy: Path, tmp_path: Path) -> None:
    run_id = json.loads((only(copy) / "run.json").read_text())["id"]
    (shipped,) = json.loads((only(copy) / "shipped.json").read_text()).values()
    shutil.rmtree(copy / "outputs")
    store = f"sqlite:///{copy / 'mlflow.db'}"
    arguments = ("reproduce", shipped["run_id"], "--uri", store, "--to", tmp_path / "again")
    assert "--trust" in trainyard(*arguments, cwd=tmp_path)[2]
    status, found, said = trainyard(*arguments, "--trust", "--json", cwd=tmp_path)
    assert status == 0, said
    assert found["weights"] == []
    assert found["points"] > 3
    assert found["files"] == []
    status, _, said = trainyard("reproduce", "f" * 32, "--uri", store, cwd=tmp_path)
    assert (status, f"No run in {store} has the ID" in said) == (2, True)
    with closing(sqlite3.connect(copy / "mlflow.db")) as database:
        database.execute("UPDATE runs SET artifact_uri = 's3://not-ours/artifacts'")
        database.commit()
    status, _, said = trainyard("reproduce", run_id, "--trust", cwd=copy)  # its own id finds it, too
    assert (status, f"artifacts of the run {run_id}" in said) == (2, True)
    assert "s3://not-ours/artifacts" in said


def test_without_a_store_nothing_is_made(trainyard: Any, tmp_path: Path) -> None:
    status, _, said = trainyard("reproduce", "f" * 32, "--uri", "sqlite:///none.db", cwd=tmp_path)
    assert status == 2
    assert "--uri" in said
    assert list(tmp_path.iterdir()) == []


def test_a_rerun_takes_the_overrides_of_a_run_and_changes(trainyard: Any, copy: Path) -> None:
    run = only(copy)
    changes = ["model.hidden=[3]", "tracker=none", f"hydra.run.dir={copy / 'new'}"]
    status, _, said = trainyard("rerun", run, *changes, "--trust", cwd=copy)
    assert status == 0, said
    config = yaml.safe_load((copy / "new" / "config.yaml").read_text())
    assert config["model"]["hidden"] == [3]
    assert config["data"]["num_samples"] == 120
    assert config["name"] is None


def test_a_rerun_and_a_resumed_sweep_have_the_configs_of_the_config_path(trainyard: Any, tmp_path: Path) -> None:
    """Those of a user's program, whose own configs have the same names."""
    (tmp_path / "mine.py").write_text(
        f"from trainyard.app import main\n\nif __name__ == '__main__':\n    main(config_path={str(ROOT / 'conf')!r})\n"
    )
    shutil.copytree(ROOT / "conf", tmp_path / "own")
    primary = tmp_path / "own/train.yaml"
    primary.write_text(re.sub(r"(?m)^seed: .*", "seed: 77", primary.read_text()))
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}

    def start(*arguments: str) -> None:
        done = forked.run([sys.executable, *arguments], cwd=tmp_path, env=environment, timeout=LIMIT)
        assert done.returncode == 0, done.stderr

    def seeds(*directories: str) -> list[int]:
        return [yaml.safe_load((tmp_path / each / "config.yaml").read_text())["seed"] for each in directories]

    command = ["mine.py", "-cp", "own", *QUICK, "tracker=none"]
    start(*command, "hydra.run.dir=run")
    start(*command, "-m", "optim.lr=0.01,0.02", "hydra.sweep.dir=sweep")
    assert seeds("run", "sweep/0", "sweep/1") == [77] * 3
    for job in ("0", "1"):  # as if the sweep had been killed at its start
        shutil.rmtree(tmp_path / "sweep" / job)
    manifest = tmp_path / "sweep/manifest.jsonl"
    lines = manifest.read_text().splitlines(keepends=True)
    first = ("manifest", "application", "grid", "job")
    manifest.write_text("".join(line for line in lines if json.loads(line)["kind"] in first))
    start("-m", "trainyard", "sweep", "resume", "sweep")
    assert seeds("sweep/0", "sweep/1") == [77] * 2
    for run in ("run", "sweep/0"):
        status, _, said = trainyard("rerun", run, "optim.lr=0.03", f"hydra.run.dir={run}-again", cwd=tmp_path)
        assert status == 0, said
        assert f"mine.py --config-path {tmp_path / 'own'} -cn train " in said
        assert seeds(f"{run}-again") == [77]
    (tmp_path / "own").rename(tmp_path / "moved")
    for run in ("run", "sweep/0"):
        status, _, said = trainyard("rerun", run, "optim.lr=0.04", cwd=tmp_path)
        assert status == 2
        assert (
            f"The run in {run} was started with --config-path {tmp_path / 'own'}, which does not exist. "
            "Restore this folder, or start the program of this run with another --config-path." in said
        )


def test_a_resolved_config_can_be_trained_from(tracked: Path, tmp_path: Path) -> None:
    """Its directory is not that of the run that it is of."""
    command = [sys.executable, "-m", "trainyard.train", "-cp", str(only(tracked)), "-cn", "config"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = forked.run([*command, "hydra.run.dir=here"], cwd=tmp_path, env=environment, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "here" / "checkpoints" / "best.pt").is_file()
