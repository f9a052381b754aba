"""What a search knows before it begins: the trials of another sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Metric, Param
from omegaconf import OmegaConf

from trainyard.errors import ConfigError, TrainyardError
from trainyard.sweep.events import Ended, Proposed
from trainyard.sweep.manifest import Manifest
from trainyard.sweep.proposers.ahead import AheadSource
from trainyard.sweep.proposers.sampling import SamplerSource
from trainyard.sweep.proposers.search import SearchProposer
from trainyard.track.shipper.trials import answer

LINES = ["optim.lr=tag(log,interval(1e-4,1e-1))", "model.hidden=[16],[32]"]
JOBS: list[tuple[list[str], str, Any]] = [
    (["optim.lr=0.001", "model.hidden=[16]"], "done", 0.3),
    (["optim.lr=0.01", "+model.hidden=[32]", "seed=4"], "done", 2),
    (["optim.lr=10", "model.hidden=[32]"], "done", 0.1),
    (["optim.lr=0.01", "model.hidden=[64]"], "done", 0.1),
    (["optim.lr=0.01"], "done", 0.1),
    (["optim.lr=0.01", "model.hidden=[16]"], "failed", None),
    (["optim.lr=0.02", "model.hidden=[16]"], "done", float("nan")),
    (["optim.lr=abc", "model.hidden=[16]"], "done", 0.1),
]


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    manifest = Manifest.open(tmp_path)
    for num, (overrides, state, objective) in enumerate(JOBS):
        manifest.log(Proposed(num, tuple(overrides)), Ended(num, state, 1.0, objective))
    return tmp_path


def source_of(proposer: SearchProposer) -> SamplerSource:
    assert isinstance(proposer._source, AheadSource)
    assert isinstance(proposer._source.source, SamplerSource)
    return proposer._source.source


def test_a_warm_start_tells_the_sampler_of_the_jobs_that_have_its_parameters(
    hydra: Any, settings_of: Any, earlier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loader, config = hydra
    proposer = settings_of(config, warm_start=str(earlier)).proposer(LINES, loader, config)
    known = [(trial.params, trial.value) for trial in source_of(proposer).study([]).trials]
    assert known == [
        ({"optim.lr": 0.001, "model.hidden": "[16]"}, 0.3),
        ({"optim.lr": 0.01, "model.hidden": "[32]"}, 2.0),
    ]
    assert capsys.readouterr().out.splitlines() == [
        f"The warm start from {earlier} uses 2 of 8 jobs.",
        "  skipped #2, #7: the value of optim.lr is outside the range of this search",
        "  skipped #3: the value of model.hidden is outside the range of this search",
        "  skipped #4: the value of model.hidden is unknown",
        "  skipped #5, #6: not finished with an objective",
    ]


def test_a_warm_start_reads_what_a_job_does_not_override_from_its_config(
    hydra: Any, settings_of: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A value may be the default of the config, or the selected option of a group. A job may be deleted."""
    loader, config = hydra
    manifest = Manifest.open(tmp_path)
    for num in range(5):
        manifest.log(Proposed(num, ("optim.lr=0.01",)), Ended(num, "done", 1.0, num / 10))
    for num, (file, text) in enumerate(
        [
            ("config.yaml", "model: {hidden: [16, 32], dropout: 0.1}"),
            (".hydra/config.yaml", "width: 16\nmodel: {hidden: ['${width}', 32]}"),
            (".hydra/config.yaml", "model: {hidden: [256, 256]}"),
            ("config.yaml", "model: ["),
        ]
    ):
        (tmp_path / f"{num}" / ".hydra").mkdir(parents=True)
        (tmp_path / f"{num}" / file).write_text(text)
        (tmp_path / f"{num}" / ".hydra" / "hydra.yaml").write_text("hydra: {runtime: {choices: {model: mlp}}}")
    lines = ["optim.lr=tag(log,interval(1e-4,1e-1))", "model.hidden=[16,32],[16]"]
    proposer = settings_of(config, warm_start=str(tmp_path)).proposer(lines, loader, config)
    assert capsys.readouterr().out.splitlines() == [
        f"The warm start from {tmp_path} uses 2 of 5 jobs.",
        "  skipped #2: the value of model.hidden is outside the range of this search",
        "  skipped #3, #4: the value of model.hidden is unknown",
    ]
    values = {"optim.lr": 0.01, "model.hidden": "[16,32]"}
    assert proposer.identity["warm_start"] == [[values, 0.0], [values, 0.1]]

    lines = ["optim.lr=tag(log,interval(1e-4,1e-1))", "model=mlp,cnn", "model.dropout=0.1,0.2"]
    settings = settings_of(config, warm_start=str(tmp_path), when={"model.dropout": "model=cnn"})
    found = settings.proposer(lines, loader, config).identity["warm_start"]
    assert [values for values, _ in found] == [{"optim.lr": 0.01, "model": "mlp"}] * 4


def test_a_search_that_is_continued_keeps_what_it_has_begun_with(
    hydra: Any, settings_of: Any, earlier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loader, config = hydra
    config.hydra.sweep.dir = str(earlier / "own")
    (earlier / "own").mkdir()
    first = settings_of(config, warm_start=str(earlier)).proposer(LINES, loader, config)
    manifest = Manifest.open(earlier / "own")
    manifest.begin(None, first.identity)
    manifest.log(Proposed(0, ("optim.lr=0.05", "model.hidden=[16]"), note={}))
    Manifest.open(earlier).log(Proposed(8, ("optim.lr=0.05", "model.hidden=[16]")), Ended(8, "done", 1.0, 0.2))
    capsys.readouterr()
    again = settings_of(config, warm_start=str(earlier)).proposer(LINES, loader, config)
    assert capsys.readouterr().out == f"The warm start from {earlier} uses the same 2 trials as before.\n"
    Manifest.open(earlier / "own").check_proposer(again.identity)
    assert again.ask(1) == first.ask(1)
    config.hydra.sweep.dir = str(earlier / "other")
    assert len(settings_of(config, warm_start=str(earlier)).proposer(LINES, loader, config).identity["warm_start"]) == 3


def test_a_sampler_begins_where_another_sweep_ended(hydra: Any, settings_of: Any, tmp_path: Path) -> None:
    """TPE draws its first ten trials at random; with as many of another sweep it learns from the first one on."""
    loader, config = hydra
    manifest = Manifest.open(tmp_path)
    for num in range(40):
        rate = 10 ** (-4 + 3 * num / 39)
        manifest.log(
            Proposed(num, (f"optim.lr={rate!r}", "model.hidden=[16]")), Ended(num, "done", 1.0, abs(rate - 0.01))
        )

    def rates(**changed: Any) -> list[float]:
        found = settings_of(config, direction="minimize", **changed).proposer(LINES, loader, config)
        return [float(each.overrides[0].partition("=")[2]) for each in found.ask(8)]

    cold, warm = rates(), rates(warm_start=str(tmp_path))
    assert sum(0.003 < rate < 0.03 for rate in warm) >= 6
    assert sum(0.003 < rate < 0.03 for rate in cold) < 6


@pytest.mark.parametrize(
    ("name", "option", "learns"),
    [
        ("TPESampler", "tpe", True),
        ("GPSampler", "gp", True),
        ("RandomSampler", "random", False),
        ("QMCSampler", "qmc", False),
        ("CmaEsSampler", "cmaes", False),
        ("NSGAIISampler", "nsgaii", False),
    ],
)
def test_the_output_says_which_samplers_do_not_learn_from_a_warm_start(
    hydra: Any,
    settings_of: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    option: str,
    learns: bool,
) -> None:
    loader, config = hydra
    for folder, best in (("low", -3.5), ("high", -1.5)):
        (tmp_path / folder).mkdir()
        manifest = Manifest.open(tmp_path / folder)
        for num in range(60):
            power = -4 + 3 * num / 59
            loss = abs(power - best)
            manifest.log(Proposed(num, (f"optim.lr={10**power!r}",)), Ended(num, "done", 1.0, loss))
    sampler = {"_target_": f"optuna.samplers.{name}", "seed": 0}

    def suggested(folder: str) -> list[Any]:
        settings = settings_of(config, direction="minimize", sampler=sampler, warm_start=str(tmp_path / folder))
        return [each.overrides for each in settings.proposer(LINES[:1], loader, config).ask(3)]

    assert (suggested("low") != suggested("high")) == learns
    told = f"  {option} does not learn from a warm start. Use hydra/sweeper/sampler=tpe or gp."
    assert (told in capsys.readouterr().out.splitlines()) != learns


def test_a_warm_start_from_no_sweep_is_refused(hydra: Any, settings_of: Any, tmp_path: Path) -> None:
    loader, config = hydra
    with pytest.raises(ConfigError) as error:
        settings_of(config, warm_start=str(tmp_path)).proposer(LINES, loader, config)
    assert str(error.value).startswith(f"hydra.sweeper.warm_start: '{tmp_path}' is invalid. Expected the directory")


BEST = {"best/val/accuracy": 0.9, "val/accuracy": 0.8}
RUNS: list[tuple[str, dict[str, str], str, dict[str, float], dict[str, str]]] = [
    (
        "best",
        {"optim.lr": "0.01", "model.hidden": "[16]"},
        "FINISHED",
        {"best/val/accuracy": 0.9, "val/accuracy": 0.8},
        {},
    ),
    ("spaced", {"optim.lr": "0.02", "model.hidden": "[16, 32]", "seed": "4"}, "FINISHED", {"val/accuracy": 0.7}, {}),
    ("far", {"optim.lr": "7.0", "model.hidden": "[16]"}, "FINISHED", {"val/accuracy": 0.7}, {}),
    ("other", {"optim.lr": "0.02"}, "FINISHED", {"val/accuracy": 0.7}, {}),
    ("killed", {"optim.lr": "0.02", "model.hidden": "[16]"}, "KILLED", {"val/accuracy": 0.7}, {}),
    ("cut", {"optim.lr": "0.02", "model.hidden": "[16]"}, "FINISHED", {"val/accuracy": 0.7}, {"pruned": "True"}),
    ("loss", {"optim.lr": "0.02", "model.hidden": "[16]"}, "FINISHED", {"val/loss": 0.7}, {}),
    ("parent", {"varying": "optim.lr"}, "FINISHED", {"best/val/accuracy": 0.9}, {"kind": "sweep"}),
]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a store with an experiment `past`, in which all runs but the first lie below `parent`."""
    from mlflow import MlflowClient

    from trainyard.track.shipper.__main__ import configure
    from trainyard.track.shipper.store import Stores

    configure()
    uri = f"sqlite:///{tmp_path / 'past.db'}"
    stores = Stores()
    stores.get(uri)  # makes the database
    stores.close()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = MlflowClient(uri)
    experiment = client.create_experiment("past")
    parent = client.create_run(experiment, run_name="parent", tags={"kind": "sweep"}).info.run_id
    client.set_terminated(parent)
    for index, (name, params, state, metrics, tags) in enumerate(RUNS[:-1]):
        below = {"mlflow.parentRunId": parent} if index else {}
        run = client.create_run(experiment, start_time=index + 1, run_name=name, tags={**tags, **below}).info.run_id
        client.log_batch(
            run,
            metrics=[Metric(key, value, 0, 0) for key, value in metrics.items()],
            params=[Param(key, text) for key, text in params.items()],
        )
        client.set_terminated(run, state)
    return uri


def test_a_warm_start_takes_the_runs_of_mlflow_that_have_its_parameters(
    hydra: Any, settings_of: Any, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    loader, config = hydra
    lines = ["optim.lr=tag(log,interval(1e-4,1e-1))", "model.hidden=[16],[16,32]"]
    found = settings_of(config, warm_start="past").proposer(lines, loader, config)
    assert capsys.readouterr().out.splitlines() == [
        f"The warm start from the experiment past in {store} uses 2 of 7 runs.",
        "  skipped far: the value of optim.lr is outside the range of this search",
        "  skipped other: the value of model.hidden is unknown",
        "  skipped killed: killed",
        "  skipped cut: pruned",
        "  skipped loss: val/accuracy is missing or NaN",
    ]
    assert found.identity["warm_start"] == [
        [{"optim.lr": 0.01, "model.hidden": "[16]"}, 0.9],
        [{"optim.lr": 0.02, "model.hidden": "[16,32]"}, 0.7],
    ]
    assert len(source_of(found).study([]).trials) == 2

    # An experiment, or a run by its name; of a sweep's own run the jobs.
    (first,) = answer(store, "best", ["val/accuracy"])["runs"]
    assert (first["params"], first["metrics"]) == (RUNS[0][1], {"val/accuracy": 0.9})
    below = answer(store, "parent", ["val/accuracy", "val/loss"])["runs"]
    assert [each["name"] for each in below] == [name for name, *_ in RUNS[1:-1]]
    assert [each["metrics"] for each in below][-1] == {"val/loss": 0.7}
    with pytest.raises(
        TrainyardError, match="MLflow has no experiment with that name, and no run with that name or ID"
    ):
        answer(store, "nothing", ["val/accuracy"])
    with pytest.raises(TrainyardError, match="that name or ID; the nearest experiment is 'past'"):
        answer(store, "pasts", ["val/accuracy"])


def test_a_warm_start_reads_what_is_no_param_from_the_config_of_a_run_in_mlflow(
    hydra: Any, settings_of: Any, store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The params of a job of a sweep do not contain the values that all jobs share."""
    from mlflow import MlflowClient

    client = MlflowClient(store)
    experiment = client.create_experiment("sweep", artifact_location=(tmp_path / "artifacts").as_uri())
    for index, hidden in enumerate(("[16, 32]", "[64]", "${width}", None)):
        run = client.create_run(experiment, start_time=index, run_name=f"job {index}").info.run_id
        client.log_batch(run, metrics=[Metric("val/accuracy", 0.5, 0, 0)], params=[Param("optim.lr", "0.01")])
        if hidden is not None:
            client.log_text(run, f"model:\n  hidden: {hidden}\n", "config.yaml")
        client.set_terminated(run)
    loader, config = hydra
    lines = ["optim.lr=tag(log,interval(1e-4,1e-1))", "model.hidden=[16],[16,32]"]
    found = settings_of(config, warm_start="sweep").proposer(lines, loader, config)
    assert capsys.readouterr().out.splitlines() == [
        f"The warm start from the experiment sweep in {store} uses 1 of 4 runs.",
        "  skipped job 1: the value of model.hidden is outside the range of this search",
        "  skipped job 2, job 3: the value of model.hidden is unknown",
    ]
    assert found.identity["warm_start"] == [[{"optim.lr": 0.01, "model.hidden": "[16,32]"}, 0.5]]


def test_a_warm_start_from_what_mlflow_does_not_have_is_refused(
    hydra: Any, settings_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader, config = hydra
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/none.db")
    with pytest.raises(ConfigError) as error:
        settings_of(config, warm_start="nothing").proposer(LINES, loader, config)
    told = (
        "hydra.sweeper.warm_start: 'nothing' is invalid. Expected the directory of a sweep, the name of an "
        "experiment in MLflow, the name or ID of a run in MLflow, or null."
    )
    assert str(error.value).startswith(told)
    assert f"There is no directory {Path.cwd()}/nothing. The MLflow database {tmp_path}/none.db" in str(error.value)
    OmegaConf.update(config, "tracker", {"uri": "file:runs"}, force_add=True)
    with pytest.raises(ConfigError, match=r"tracker\.uri: 'file:runs' is invalid"):
        settings_of(config, warm_start="nothing").proposer(LINES, loader, config)
