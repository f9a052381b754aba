import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from waiting import LIMIT, until

from trainyard.config.build import build
from trainyard.errors import ConfigError, TrainyardError
from trainyard.redaction import redact
from trainyard.track import MLflowTracker, NoTracker, RunInfo, facts
from trainyard.track import uri as uris


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=A", "-c", "user.email=a@b.c", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_read_gives_what_was_written(tmp_path: Path) -> None:
    info = RunInfo(name="mlp", params={"lr": "0.1"}, uri="sqlite:////a.db", parent="f" * 32, python_path=["/here"])
    info.write(tmp_path)
    assert RunInfo.read(tmp_path) == info
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]  # no temporary file stays


def test_a_later_version_may_know_more(tmp_path: Path) -> None:
    RunInfo(name="mlp").write(tmp_path)
    path = tmp_path / "run.json"
    path.write_text(path.read_text().replace('"name"', '"news": 1, "name"'))
    assert RunInfo.read(tmp_path).name == "mlp"


@pytest.mark.parametrize("content", [None, "", "[]", '{"id": "1"}', '{"name": '])
def test_no_run_is_a_readable_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(TrainyardError, match=r"run.json cannot be read"):
        RunInfo.read(tmp_path)


def test_a_directory_keeps_its_run(tmp_path: Path) -> None:
    first = NoTracker().open(tmp_path, RunInfo(name="first", params={"epochs": "1"}))
    assert first.user
    assert first.source
    with pytest.raises(ConfigError, match=r"work_dir.*resume=true"):
        NoTracker().open(tmp_path, RunInfo(name="second"))
    resumed = NoTracker().open(tmp_path, RunInfo(name="second", params={"epochs": "2"}), resume=True)
    assert (resumed.id, resumed.name, resumed.start_time) == (first.id, "first", first.start_time)
    assert RunInfo.read(tmp_path) == resumed


def test_changes_of_a_resumed_run_are_kept_beside_its_params(tmp_path: Path) -> None:
    def begun_at(step: int, **params: str) -> RunInfo:
        return NoTracker().open(tmp_path, RunInfo("a", params=params), resume=True, step=step)

    assert begun_at(0, epochs="1", lr="0.1").changes == {}
    assert begun_at(10, epochs="2", lr="0.1", seed="0").changes == {"epochs@10": "2"}
    assert begun_at(20, epochs="2", lr="0.1", seed="0").changes == {"epochs@10": "2"}
    last = begun_at(30, epochs="1")
    assert last.changes == {"epochs@10": "2", "epochs@30": "1"}
    assert last.params == {"epochs": "1", "lr": "0.1", "seed": "0"}
    assert RunInfo.read(tmp_path) == last


def test_the_diff_becomes_a_file(tmp_path: Path) -> None:
    given = {"git.commit": "c0ffee", "git.diff": "-one\n+two\n"}
    info = NoTracker().open(tmp_path, RunInfo(name="a", facts=given))
    assert info.facts == RunInfo.read(tmp_path).facts == {"git.commit": "c0ffee"}
    assert (tmp_path / "git.diff").read_text() == "-one\n+two\n"
    assert "git.diff" in given


def test_a_tracked_run_stays_where_it_is_tracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    NoTracker().open(tmp_path, RunInfo(name="a", uri="sqlite:////elsewhere.db", experiment="first"))
    tracker = MLflowTracker(experiment="second")
    monkeypatch.setattr(tracker, "_track", lambda work_dir: None)
    info = tracker.open(tmp_path, RunInfo(name="a"), resume=True)
    assert (info.uri, info.experiment) == ("sqlite:////elsewhere.db", "first")


def test_facts_of_a_repository(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet", "--initial-branch=trunk")
    assert "git.commit" not in facts.collect(tmp_path)  # no commit yet
    (tmp_path / "a.txt").write_text("one\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message=first")
    clean = facts.collect(tmp_path)
    assert clean["git.commit"] == git(tmp_path, "rev-parse", "HEAD")
    assert clean["git.branch"] == "trunk"
    assert clean["git.dirty"] == "false"
    assert "git.diff" not in clean
    (tmp_path / "a.txt").write_text("two\n")
    (tmp_path / "folder").mkdir()
    dirty = facts.collect(tmp_path / "folder")
    assert dirty["git.dirty"] == "true"
    assert "-one\n+two\n" in dirty["git.diff"]


def test_facts_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    no_repository = facts.collect(tmp_path)
    monkeypatch.setenv("PATH", "")
    no_git = facts.collect(tmp_path)
    for found in (no_repository, no_git):
        assert not [name for name in found if name.startswith("git.")]
        assert found["version.python"] == ".".join(map(str, sys.version_info[:3]))
        assert {"version.torch", "version.mlflow", "host.name", "host.cpu", "host.cpu_count"} <= found.keys()


def test_the_cpus_of_the_machine_are_counted(tmp_path: Path) -> None:
    """A job of a sweep, which uses only the CPUs of its slot, is on the same machine as a single run."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert facts.collect(tmp_path)["host.cpu_count"] == str(os.cpu_count())
    finally:
        os.sched_setaffinity(0, before)


def test_git_is_waited_for_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = tmp_path / "git"
    git.write_text(f"#!/bin/sh\ntouch {tmp_path}/asked\nwhile [ ! -e {tmp_path}/go ]; do sleep 0.01; done\nexit 1\n")
    git.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    result = facts.begin(tmp_path, LIMIT)
    until((tmp_path / "asked").exists)
    (tmp_path / "go").touch()
    assert result()["host.name"]


def test_the_trainer_imports_neither_mlflow_nor_torch(environment: dict[str, str], tmp_path: Path) -> None:
    code = f"""
import sys
from trainyard.track import Journal, MLflowTracker, RunInfo, facts
facts.collect(".")
tracker = MLflowTracker()
Journal({str(tmp_path)!r}).metrics(1, {{"loss": 1.0}})
tracker.finish()
print([name for name in ("mlflow", "torch", "numpy", "sqlalchemy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_where_runs_are_tracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = MLflowTracker()
    assert (tracker.uri, tracker.experiment) == (f"sqlite:///{tmp_path}/mlflow.db", "trainyard")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000/")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    tracker = MLflowTracker()
    assert (tracker.uri, tracker.experiment) == ("http://server:5000", "mine")
    tracker = MLflowTracker(uri="sqlite:///data/runs.db", experiment="other")
    assert (tracker.uri, tracker.experiment) == (f"sqlite:///{tmp_path}/data/runs.db", "other")
    assert MLflowTracker(uri="sqlite:////data/runs.db").uri == "sqlite:////data/runs.db"
    assert MLflowTracker(uri="postgresql+psycopg2://host/db").uri == "postgresql+psycopg2://host/db"
    assert MLflowTracker(uri="databricks").uri == "databricks"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("uri", ["mlruns", "./mlruns", "file:///tmp/mlruns", "file:mlruns", "/tmp/mlruns"])
def test_the_file_store_is_not_offered(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"uri: .*sqlite:///mlflow.db"):
        MLflowTracker(uri=uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ConfigError, match=r"MLFLOW_TRACKING_URI: .*sqlite:///mlflow.db"):
        MLflowTracker()


def test_a_variable_is_in_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = {"_target_": "trainyard.track.MLflowTracker"}
    for name, value in {"MLFLOW_EXPERIMENT_NAME": "a\nb", "MLFLOW_TRACKING_URI": "mlruns"}.items():
        monkeypatch.setenv(name, value)
        with pytest.raises(ConfigError, match=f"^{name}: "):
            build(tracker, "tracker")
    with pytest.raises(ConfigError, match=r"^tracker\.uri: "):
        build({**tracker, "uri": "mlruns"}, "tracker")


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ConfigError, match=r"uri: .*Did you mean 'http://host:5000'"):
        MLflowTracker(uri="htp://host:5000")
    for uri in ("sqlite://", "sqlite:///:memory:"):
        with pytest.raises(ConfigError, match="memory"):
            MLflowTracker(uri=uri)
    with pytest.raises(ConfigError, match=r"uri: 'results/runs.db' .*database, use sqlite:///results/runs\.db\."):
        MLflowTracker(uri="results/runs.db")
    with pytest.raises(ConfigError, match=r"log_checkpoints: 'best' .*an empty list, or a list with best"):
        MLflowTracker(log_checkpoints="best")
    with pytest.raises(ConfigError, match=r"log_checkpoints: 'beste'.*Did you mean 'best'"):
        MLflowTracker(log_checkpoints=["beste"])
    with pytest.raises(ConfigError, match="wait"):
        MLflowTracker(wait=-1)


def test_the_configs(tmp_path: Path) -> None:
    conf = Path(__file__).resolve().parents[2] / "conf" / "tracker"
    tracker, none = (instantiate(OmegaConf.load(conf / f"{name}.yaml"), _convert_="all") for name in ("mlflow", "none"))
    assert isinstance(tracker, MLflowTracker)
    assert (tracker.log_model, tracker.log_checkpoints, tracker.wait) == (True, ("best", "last"), 60.0)
    assert isinstance(none, NoTracker)
    none.start()
    none.open(tmp_path, RunInfo(name="a"))
    none.close(tmp_path)
    assert none.finish().complete
    assert str(none.finish()) == ""
    assert not none.log_model


def test_passwords_are_not_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = "postgresql://ann:s3cret@host:5432/runs"
    tracker = MLflowTracker(uri=full)
    monkeypatch.setattr(tracker, "_track", lambda work_dir: None)
    written = tracker.open(tmp_path, RunInfo(name="a")).uri
    assert written == "postgresql://ann:***@host:5432/runs"
    assert "s3cret" not in (tmp_path / "run.json").read_text()
    with pytest.raises(TrainyardError, match="MLFLOW_TRACKING_URI"):
        uris.with_password(written)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", full)
    assert uris.with_password(written) == full
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:s3cret@host:5000/")
    written = redact(uris.resolve(None, tmp_path))
    assert uris.with_password(written) == "http://ann:s3cret@host:5000"
    assert redact("http://host:5000/a@b:c") == "http://host:5000/a@b:c"


def test_hydra_may_have_changed_the_folder(tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "app.py").write_text("""
import hydra
from trainyard.track import MLflowTracker
@hydra.main(config_path=None, version_base="1.3")
def main(cfg):
    print(MLflowTracker().uri)
main()
""")
    command = [sys.executable, "app.py", "hydra.job.chdir=true"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == f"sqlite:///{os.path.realpath(tmp_path)}/mlflow.db\n"


def test_a_setting_that_was_no_param_is_one_with_its_first_value(tmp_path: Path) -> None:
    def begun_at(step: int, params: dict[str, str], **settings: str) -> RunInfo:
        info = RunInfo("a", params=params, settings=settings)
        return NoTracker().open(tmp_path, info, resume=True, step=step)

    begun_at(0, {"lr": "0.1"}, lr="0.1", clip="None", decay="0")
    resumed = begun_at(10, {"lr": "0.1", "clip": "5"}, lr="0.1", clip="5", decay="0")
    assert (resumed.params, resumed.changes) == ({"lr": "0.1", "clip": "None"}, {"clip@10": "5"})
    again = begun_at(20, {"lr": "0.1", "decay": "1"}, lr="0.1", clip="5", decay="1")
    assert again.params == {"lr": "0.1", "clip": "None", "decay": "0"}
    assert again.changes == {"clip@10": "5", "decay@20": "1"}
    assert begun_at(30, {"lr": "0.1"}, lr="0.1", clip="5", decay="1").changes == again.changes
