"""`trainyard sweep ls, attach, resume, report`, and steering from another terminal."""

import fcntl
import json
import os
import shutil
import threading
from functools import partial
from pathlib import Path
from typing import Any

import click
import pytest
from rich.console import Console
from waiting import until

from trainyard.catalog.stored_sweep import StoredSweep
from trainyard.cli import sweep_report, watching


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def directory(folder: Path) -> Path:
    (found,) = folder.glob("multirun/*/*")
    return found


def test_sweeps_are_listed(trainyard: Any, trained: Path) -> None:
    status, (found,), _ = trainyard("sweep", "ls", "--json", cwd=trained)
    assert status == 0
    assert found["states"] == {"0": "done", "1": "done"}
    assert found["objective"] == "val/accuracy"
    assert found["best"] == max(row.objective or 0.0 for row in StoredSweep.read(directory(trained)).rows())
    assert not found["running"]
    _, text, _ = trainyard("sweep", "ls", cwd=trained)
    assert "2 done" in text
    assert trainyard("sweep", "ls", "outputs", cwd=trained)[1] == "No sweeps found in outputs.\n"


def test_the_report_is_that_of_the_end_of_the_sweep(trainyard: Any, copy: Path) -> None:
    folder = directory(copy)
    before = (folder / "results.csv").read_text()
    (folder / "results.csv").unlink()
    (folder / "report.html").unlink()
    status, text, said = trainyard("sweep", "report", folder, cwd=copy)
    assert status == 0, said
    assert "optim.lr" in text
    assert "report.html" in text
    assert (folder / "results.csv").read_text() == before
    assert (folder / "report.html").is_file()
    _, found, _ = trainyard("sweep", "report", folder, "--json", cwd=copy)
    assert [job["overrides"] for job in found["jobs"]] != []


def _has_line(lines: list[str], beginning: str) -> bool:
    return any(line.startswith(beginning) for line in lines)


def test_attach_follows_to_the_end(trainyard: Any, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends when the process that runs the sweep does: here, this one, which holds the manifest's lock."""
    folder = directory(copy)
    shown: list[str] = []
    monkeypatch.setattr(watching, "_PAUSE", 0.01)
    monkeypatch.setattr(click, "echo", shown.append)
    fd = os.open(folder / "manifest.jsonl", os.O_RDWR | os.O_APPEND)
    fcntl.flock(fd, fcntl.LOCK_EX)
    sweep = StoredSweep.read(folder)
    thread = threading.Thread(target=watching.watch, args=[sweep])
    thread.start()
    for state in ("running", "done"):
        record = {
            "kind": "state",
            "num": 1,
            "state": state,
            "objective": 0.25 if state == "done" else None,
            "time": 1.0,
        }
        os.write(fd, f"{json.dumps(record)}\n".encode())
        until(partial(_has_line, shown, state))
    assert thread.is_alive()
    os.close(fd)
    thread.join()
    assert shown[0] == "2 jobs: 2 done"
    assert "0.2500" in shown[-1]


def test_the_table_has_the_running_jobs_with_their_latest_numbers(copy: Path) -> None:
    folder = directory(copy)
    with (folder / "manifest.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "state", "num": 1, "state": "running", "time": 1.0}) + "\n")
    console = Console(width=80)
    with console.capture() as capture:
        console.print(watching._table(StoredSweep.read(folder), {}))
    text = capture.get()
    assert "2 jobs: 1 done, 1 running; best val/accuracy" in text
    assert "#1" in text
    assert "optim.lr=0.01" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ls", "nowhere"], "FOLDER: 'nowhere' is invalid. Expected the path of an existing folder."),
        (["attach", "outputs"], "the directory of a sweep"),
        (["report", "outputs"], "`trainyard sweep ls` lists the sweeps"),
        (["resume", "outputs"], "which has a multirun.yaml"),
        (["resume", "{sweep}", "1"], "a job that is not finished; #1 is done"),
        (["resume", "{sweep}", "1", "--app", "x.py"], "--app applies to the entire sweep"),
        (["stop", "{sweep}", "7"], "the number of a job of this sweep: #0-#1"),
        (["clone", "{sweep}", "1"], "a clone is a job with other values"),
    ],
)
def test_what_cannot_be_is_told(trainyard: Any, trained: Path, arguments: list[str], message: str) -> None:
    given = [argument.format(sweep=directory(trained)) for argument in arguments]
    status, shown, said = trainyard("sweep", *given, cwd=trained)
    assert (status, shown) == (2, "")
    assert message in said.replace("\n", " ")
    assert not (directory(trained) / "commands").exists()


def test_attach_says_that_nothing_runs(trainyard: Any, trained: Path) -> None:
    status, text, _ = trainyard("sweep", "attach", directory(trained), cwd=trained)
    assert status == 0
    assert text.startswith("No process is running this sweep: 2 done.")
    assert "rank" in text


def test_cancel_names_what_ends_a_sweep_that_is_not_detached(trainyard: Any, trained: Path) -> None:
    status, _, said = trainyard("sweep", "cancel", directory(trained), cwd=trained)
    assert status == 2
    assert "Expected the directory of a detached sweep" in said
    assert "To stop any other sweep, press Ctrl-C" in said


def test_a_table_and_a_figure_for_a_paper_are_exported(trainyard: Any, copy: Path) -> None:
    folder = directory(copy)
    status, table, said = trainyard("sweep", "export", folder, cwd=copy)
    assert status == 0, said
    assert table.startswith("| optim.lr | val/accuracy | test/accuracy |")
    status, shown, _ = trainyard("sweep", "export", folder, "--format", "csv", "--to", "table.csv", cwd=copy)
    assert (status, shown) == (0, "table.csv\n")
    assert (copy / "table.csv").read_text().startswith("rank,optim.lr,n,mean/best/val/accuracy,")
    status, shown, _ = trainyard("sweep", "export", folder, "--format", "pdf", cwd=copy)
    assert (status, shown) == (0, f"{folder / 'results.pdf'}\n")
    assert (folder / "results.pdf").read_bytes().startswith(b"%PDF")
    for arguments, message in (
        (["--metric", "test/acuracy"], "Did you mean 'test/accuracy'?"),
        (["--to", "nowhere/table.md"], "nowhere/table.md could not be written: No such file or directory."),
    ):
        status, _, said = trainyard("sweep", "export", folder, *arguments, cwd=copy)
        assert status == 2
        assert message in said.replace("\n", " ")


def test_the_report_of_a_running_sweep_is_written_until_it_ends(
    trainyard: Any, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = directory(copy)
    fd = os.open(folder / "manifest.jsonl", os.O_RDWR | os.O_APPEND)
    fcntl.flock(fd, fcntl.LOCK_EX)
    pages = []

    def sleep(seconds: float) -> None:
        pages.append((folder / "report.html").read_text())
        if len(pages) == 1:
            record = {"kind": "state", "num": 1, "state": "failed", "error": "came too late", "time": 1.0}
            os.write(fd, f"{json.dumps(record)}\n".encode())
        else:
            os.close(fd)  # nothing runs it any more

    monkeypatch.setattr(sweep_report, "sleep", sleep)
    status, text, said = trainyard("sweep", "report", folder, "--follow", cwd=copy)
    assert status == 0, said
    assert ["came too late" in page for page in pages] == [False, True]
    assert all("<body data-live=10>" in page for page in pages)
    assert "came too late" in (folder / "report.html").read_text()
    assert "<body>" in (folder / "report.html").read_text()
    assert text.count("Report: ") == 2


def test_the_objective_is_known_once_a_job_has_written_its_config(copy: Path) -> None:
    """A sweep may be read before its first job has begun: by `attach`, or by `report --follow`."""
    folder = directory(copy)
    for num in (0, 1):
        (folder / str(num) / "config.yaml").rename(folder / f"{num}.yaml")
    sweep = StoredSweep.read(folder)
    assert (sweep.objective, sweep.direction) == (None, "minimize")
    (folder / "1.yaml").rename(folder / "1" / "config.yaml")
    assert (sweep.objective, sweep.direction) == ("val/accuracy", "maximize")
