"""`trainyard runs, show, compare, tail, rm, gc`, on runs that were trained."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from trainyard.catalog import find
from trainyard.cli import COMMANDS, gc, main, rm
from trainyard.errors import TrainyardError


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def runs(trainyard: Any, folder: Path, *arguments: Any) -> Any:
    status, found, said = trainyard("runs", "--json", *arguments, cwd=folder)
    assert status == 0, said
    return found


def test_the_runs_and_the_jobs_are_listed(trainyard: Any, trained: Path) -> None:
    found = runs(trainyard, trained)
    assert [run["state"] for run in found] == ["finished"] * 3
    assert [run["epoch"] for run in found] == [2] * 3
    assert all(run["best"]["name"] == "val/accuracy" for run in found)
    status, text, _ = trainyard("runs", cwd=trained)
    assert status == 0
    assert all(run["id"][:8] in text and run["directory"] in text for run in found)


def test_the_best_is_that_of_the_ranking(trainyard: Any, trained: Path) -> None:
    results = next(trained.glob("multirun/*/*/manifest.jsonl")).read_text().splitlines()
    states = [json.loads(line) for line in results]
    ranked = {state["num"]: state["objective"] for state in states if state.get("state") == "done"}
    found = runs(trainyard, trained, "multirun", "--sort", "optim.lr")
    assert [run["best"]["value"] for run in found] == [ranked[0], ranked[1]]


def test_conditions_orders_columns_and_limits(trainyard: Any, trained: Path) -> None:
    assert len(runs(trainyard, trained, "--where", "optim.lr>0.001 and model=mlp")) == 1
    assert runs(trainyard, trained, "--where", "val/accuracy>2") == []
    assert trainyard("runs", "--where", "val/accuracy>2", cwd=trained)[1] == "No run matches the condition.\n"
    rates = [run["optim.lr"] for run in runs(trainyard, trained, "--sort", "-optim.lr", "--columns", "optim.lr")]
    assert rates == [0.01, 0.001, 0.001]
    assert len(runs(trainyard, trained, "--limit", 2)) == 2


def test_a_condition_in_a_folder_without_runs(trainyard: Any, tmp_path: Path) -> None:
    assert (
        trainyard("runs", "--where", "val/accuracy>2", tmp_path, cwd=tmp_path)[1] == f"No runs found in {tmp_path}.\n"
    )


def test_a_run_is_shown_by_the_beginning_of_its_id(trainyard: Any, trained: Path) -> None:
    run = runs(trainyard, trained)[0]
    _, shown, _ = trainyard("show", run["id"][:6], "--json", cwd=trained)
    assert shown["id"] == run["id"]
    assert shown["metrics"] == run["metrics"]
    assert shown["config"]["optim"]["lr"] == 0.001
    _, text, _ = trainyard("show", run["id"][:6], cwd=trained)
    assert "best.pt" in text
    assert "epoch 2" in text or "epoch 1" in text


def test_jobs_of_a_sweep_differ_in_what_was_swept(trainyard: Any, trained: Path) -> None:
    ids = [run["id"] for run in runs(trainyard, trained, "multirun", "--sort", "optim.lr")]
    _, found, _ = trainyard("compare", *ids, "--json", cwd=trained)
    assert found["settings"] == {"optim.lr": [0.001, 0.01]}
    assert found["code"] == found["environment"] == {}
    status, text, _ = trainyard("compare", *ids, cwd=trained)
    assert status == 0
    assert "code: the same" in text


def test_a_run_that_has_ended_is_printed_to_its_end(trainyard: Any, trained: Path) -> None:
    run = runs(trainyard, trained, "outputs")[0]["directory"]
    status, text, _ = trainyard("tail", run, "-n", 3, cwd=trained)
    assert status == 0
    assert "test/accuracy" in text
    assert text.rstrip().endswith("finished")
    _, text, _ = trainyard("tail", run, "--metric", "val/", "--no-follow", cwd=trained)
    assert "val/accuracy" in text
    assert "train/" not in text


def test_gc_keeps_the_best_and_says_how_much_it_frees(trainyard: Any, copy: Path) -> None:
    before = {path.name for path in copy.rglob("*.pt")}
    status, text, _ = trainyard("gc", "--dry-run", cwd=copy)
    assert status == 0
    assert "of 3 runs" in text
    assert {path.name for path in copy.rglob("*.pt")} == before > {"best.pt"}
    assert trainyard("gc", cwd=copy, answer="n\n")[1].rstrip().endswith("Nothing was removed.")
    assert {path.name for path in copy.rglob("*.pt")} == before
    assert trainyard("gc", cwd=copy, answer="y\n")[0] == 0
    assert {path.name for path in copy.rglob("*.pt")} == {"best.pt"}
    assert "Nothing to remove." in trainyard("gc", cwd=copy)[1]


def test_rm_asks_and_removes_only_what_was_named(trainyard: Any, copy: Path) -> None:
    first, second, third = (run["id"] for run in runs(trainyard, copy))
    assert trainyard("rm", first, cwd=copy, answer="n\n")[0] == 0
    assert len(runs(trainyard, copy)) == 3
    assert trainyard("rm", "--yes", first, second, cwd=copy)[0] == 0
    assert [run["id"] for run in runs(trainyard, copy)] == [third]


@pytest.fixture
def resumed(copy: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory of a finished run, whose journal another process opens while a command waits for its answer."""
    directory = find([copy / "outputs"])[0].directory
    program = (
        "import sys; from trainyard.track import Journal; journal = Journal(sys.argv[1]); print(flush=True); input()"
    )
    writers = []

    def answer(_: str) -> bool:
        pipe = subprocess.PIPE
        writer = subprocess.Popen([sys.executable, "-c", program, str(directory)], text=True, stdin=pipe, stdout=pipe)
        writers.append(writer)
        return writer.stdout.readline() == "\n"

    monkeypatch.setattr("click.confirm", answer)
    yield directory
    writers[0].communicate("\n")
    assert writers[0].returncode == 0


def test_gc_skips_a_run_that_is_resumed_before_the_answer(copy: Path, resumed: Path) -> None:
    before = sorted(resumed.rglob("*.pt"))
    done = CliRunner().invoke(gc.command, [str(copy)], catch_exceptions=False)
    assert "Runs that were resumed meanwhile, which are skipped: 1 of 3.\nRemoved." in done.output
    assert sorted(resumed.rglob("*.pt")) == before
    assert {path.name for path in (copy / "multirun").rglob("*.pt")} == {"best.pt"}


def test_rm_removes_nothing_if_a_run_is_resumed_before_the_answer(copy: Path, resumed: Path) -> None:
    found = [str(run.directory) for run in find([copy])]
    with pytest.raises(TrainyardError, match="this run is in progress"):
        CliRunner().invoke(rm.command, found, catch_exceptions=False)
    assert len(find([copy])) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rums"], "Did you mean 'runs'"),
        (["runs", "nowhere"], "FOLDER: 'nowhere' is invalid. Expected the path of an existing folder."),
        (["runs", "--where", "val/acuracy>0"], "Did you mean 'val/accuracy'"),
        (["runs", "--where", "val/accuracy>"], "comparisons such as"),
        (["runs", "--sort", "optim.l"], "Did you mean 'optim.lr'"),
        (["runs", "--columns", "sed"], "Did you mean 'seed'"),
        (["show", "nothing"], "`trainyard runs` lists the runs"),
        (["show", "."], "neither the directory of a run"),
        (["compare", "multirun"], "multirun is neither the directory of a run"),
        (["compare"], "at least two different runs"),
        (["rm", "nothing"], "No run has the name or ID"),
        (["gc", "nowhere"], "FOLDER: 'nowhere' is invalid. Expected the path of an existing folder."),
    ],
)
def test_what_a_user_has_to_change_is_one_paragraph_and_status_2(
    trainyard: Any, trained: Path, arguments: list[str], message: str
) -> None:
    status, shown, said = trainyard(*arguments, cwd=trained)
    assert status == 2
    assert shown == ""
    assert message in said
    assert "Traceback" not in said


def test_a_current_folder_that_was_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.setenv("COLUMNS", "200")
    for arguments in (["runs"], ["show", "x"], ["sweep", "ls"], ["train", "model=mlp"]):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        assert capsys.readouterr().err.startswith("The current folder was removed, or you have no access to it.")


def test_runs_commands_and_files_are_completed(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def completed(words: str, at: int) -> list[str]:
        monkeypatch.chdir(trained)
        monkeypatch.setenv("_TRAINYARD_COMPLETE", "bash_complete")
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(at))
        with pytest.raises(SystemExit, match="0"):
            main([])
        return capsys.readouterr().out.split()

    assert completed("trainyard rep", 1) == ["plain,reproduce"]
    assert completed("trainyard sweep rep", 2) == ["plain,report"]
    ids = {run.info.id[:8] for run in find([trained])}
    assert ids == {word.removeprefix("plain,") for word in completed("trainyard show ", 2)} & ids
    assert completed(f"trainyard compare {min(ids)}", 2) == [f"plain,{min(ids)}"]
    assert completed("trainyard show ./outp", 2)[0].startswith("file,")


def test_every_command_has_a_help_that_begins_as_the_list_does(trainyard: Any, tmp_path: Path) -> None:
    for name in COMMANDS.keys() - {"train"}:
        status, text, _ = trainyard(name, "--help", cwd=tmp_path)
        assert status == 0
        assert text.startswith("Usage: trainyard")
    status, text, _ = trainyard("--help", cwd=tmp_path)
    assert all(f"  {name} " in text for name in COMMANDS)
    assert trainyard("--version", cwd=tmp_path)[1].startswith("trainyard, version ")


def test_the_command_imports_neither_torch_nor_mlflow_nor_hydra(trained: Path) -> None:
    code = (
        "import sys; from trainyard.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'mlflow', 'hydra', 'numpy') if name in sys.modules], file=sys.stderr)"
    )
    for arguments in (["--help"], ["runs"], ["gc", "--dry-run"], ["sweep", "ls"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=trained, capture_output=True, text=True, check=False
        )
        assert done.stderr == "[]\n"


@pytest.mark.parametrize("arguments", [("new", "waves"), ("schema", "conf", "--to", "schemas")])
def test_a_folder_that_cannot_be_written(
    trainyard: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    (tmp_path / "conf").mkdir()

    def refuse(path: Any, *_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "mkdir", refuse)
    status, _, said = trainyard(*arguments, cwd=tmp_path)
    assert status == 2
    assert "cannot be read or written: Permission denied." in said
    assert "Traceback" not in said


def test_a_folder_below_a_file(trainyard: Any, tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "file").write_text("")
    status, _, said = trainyard("schema", "conf", "--to", "file/schemas", cwd=tmp_path)
    assert (status, "cannot be read or written: Not a directory." in said) == (2, True)
