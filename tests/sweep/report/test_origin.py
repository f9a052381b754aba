"""Origin of a sweep's numbers in its report."""

import json
from pathlib import Path

import yaml  # type: ignore[import-untyped,unused-ignore]

from trainyard.sweep.report import JobRow, html
from trainyard.sweep.report.origin import Origin
from trainyard.track.run_info import RunInfo
from trainyard.track.shipped import Shipped

SERVER = "https://bob:secret@mlflow.example.org/team"


def stored(folder: Path, uri: str) -> list[JobRow]:
    """A sweep of one job, as the files of a tracked sweep have it."""
    facts = {"git.commit": "60e4371abe4f", "git.dirty": "true"}
    for directory, run in ((folder, "s"), (folder / "0", "j")):
        directory.mkdir(parents=True)
        RunInfo("run", facts=facts, uri=uri).write(directory)
        Shipped(run_id=run, experiment_id="7").save(directory, uri)
    records = [
        {"kind": "manifest", "format": 2},
        {"kind": "application", "file": str(folder.parent / "train.py"), "module": None},
        {"kind": "began", "time": 1.5},
    ]
    (folder / "manifest.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    hydra = {
        "overrides": {
            "hydra": ["hydra.mode=MULTIRUN", f"hydra.sweep.dir={folder}", "hydra.launcher.retries=1"],
            "task": ["optim.lr=1e-3,1e-2", f"tracker.uri={SERVER}"],
        },
        "runtime": {"cwd": str(folder.parent), "config_sources": []},
        "job": {"name": "train", "config_name": "train"},
    }
    (folder / "multirun.yaml").write_text(yaml.safe_dump({"hydra": hydra}))
    return [JobRow(0, {"optim.lr": "1e-3"}, "done", 0.5, 1.0, folder / "0")]


def test_the_page_says_where_its_numbers_come_from(tmp_path: Path) -> None:
    rows = stored(tmp_path / "s", SERVER)
    origin = Origin.of(tmp_path / "s", rows)
    assert origin == Origin(
        started=1.5,
        commit="60e4371abe4f, with uncommitted changes",
        command="python train.py -m hydra.launcher.retries=1 optim.lr=1e-3,1e-2 "
        "tracker.uri=https://bob:***@mlflow.example.org/team hydra.sweep.dir=s",
        page="https://mlflow.example.org/team/#/experiments/7/runs/s?workflowType=machine_learning",
        pages={0: "https://mlflow.example.org/team/#/experiments/7/runs/j?workflowType=machine_learning"},
        uri="https://bob:***@mlflow.example.org/team",
    )
    page = html.Report(rows, tmp_path / "s", title="s", objective=None, direction="minimize").write().read_text()
    assert "secret" not in page
    for part in (origin.commit, "hydra.launcher.retries=1", f'href="{origin.page}"', f'href="{origin.pages[0]}"'):
        assert part in page


def test_the_command_has_the_config_path_of_the_last_start(tmp_path: Path) -> None:
    rows = stored(tmp_path / "s", SERVER)
    for folder in ("/first", "/own configs"):
        record = {"kind": "application", "file": str(tmp_path / "train.py"), "module": None, "config_path": folder}
        with (tmp_path / "s/manifest.jsonl").open("a") as file:
            file.write(f"{json.dumps(record)}\n" + 30 * '{"kind": "other"}\n')
    command = Origin.of(tmp_path / "s", rows).command
    assert command.startswith("python train.py -m --config-path '/own configs' hydra.launcher.retries=1 ")


def test_links_are_added_to_runs_that_arrive_after_the_page_was_written(tmp_path: Path) -> None:
    rows = stored(tmp_path / "s", SERVER)
    late = tmp_path / "s/1"
    late.mkdir()
    RunInfo("run", uri=SERVER).write(late)
    rows.append(JobRow(1, {"optim.lr": "1e-2"}, "done", 0.6, 1.0, late))
    report = html.Report(rows, tmp_path / "s", title="s", objective=None, direction="minimize")
    file = report.write()
    first = file.read_text()
    assert first.count(">run</a>") == 1
    lines = [line for line in first.splitlines() if "<tr data-job" in line]
    assert len({line.count("<td") for line in lines}) == 1, "a cell without a link is empty, not missing"
    report.add_links()
    assert file.read_text() == first
    Shipped(run_id="late", experiment_id="7").save(late, SERVER)
    report.add_links()
    assert file.read_text().count(">run</a>") == 2
    assert "/runs/late?" in file.read_text()


def test_a_database_has_the_command_that_serves_it(tmp_path: Path) -> None:
    rows = stored(tmp_path / "s", "sqlite:////data/mlflow.db")
    origin = Origin.of(tmp_path / "s", rows)
    assert origin.page.startswith("http://127.0.0.1:5000/#/experiments/7/runs/s?")
    assert origin.server == "mlflow ui --backend-store-uri sqlite:////data/mlflow.db"


def test_commands_quote_what_a_shell_and_hydra_would_divide(tmp_path: Path) -> None:
    rows = stored(tmp_path / "lr=1 b", "sqlite:////my data/mlflow.db")
    origin = Origin.of(tmp_path / "lr=1 b", rows)
    assert origin.server == "mlflow ui --backend-store-uri 'sqlite:////my data/mlflow.db'"
    assert origin.command.endswith(""" 'hydra.sweep.dir="lr=1 b"'""")


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    assert Origin.of(tmp_path, []) == Origin()
    (tmp_path / "multirun.yaml").write_text("a: [")
    (tmp_path / "manifest.jsonl").write_text('{"kind": "application", "file": "x.py", "module": null}\n[]\n{"kind"')
    assert Origin.of(tmp_path, []) == Origin()
