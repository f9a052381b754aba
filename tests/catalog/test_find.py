"""Finding runs, and the run that a user means."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from trainyard.catalog import find, resolve
from trainyard.errors import TrainyardError


def test_runs_are_found_below_a_folder_in_the_order_of_their_start(make_run: Any, tmp_path: Path) -> None:
    made = [make_run(name, folder=f"{place}/{name}") for name, place in (("c", "x/y"), ("a", "z"), ("b", "."))]
    assert [run.info.name for run in find([tmp_path])] == ["c", "a", "b"]
    assert [run.info.id for run in find([tmp_path, made[1].directory])] == [run.info.id for run in made]


def test_the_parent_of_a_sweep_artifacts_and_damaged_records_are_no_runs(make_run: Any, tmp_path: Path) -> None:
    make_run("sweep")
    (tmp_path / "sweep" / "manifest.jsonl").touch()
    make_run("job", folder="sweep/0")
    make_run("copy", folder="mlruns/1")
    (make_run("damaged").directory / "run.json").write_text("{")
    assert [run.info.name for run in find([tmp_path])] == ["job"]


def test_a_run_is_meant_by_its_directory_a_file_in_it_its_id_its_name_or_its_folder_s(
    make_run: Any, tmp_path: Path
) -> None:
    run = make_run("mlp digits", folder="2026/12-00", checkpoints=["best.pt"])
    make_run("other")
    meant = [str(run.directory), str(run.directory / "checkpoints" / "best.pt"), run.info.id[:6], "mlp digits", "12-00"]
    assert {resolve(text, [tmp_path]).info.id for text in meant} == {run.info.id}


def test_a_name_that_is_nowhere_names_the_nearest(make_run: Any, tmp_path: Path) -> None:
    make_run("cnn rings")
    told = r"No run has the name or ID 'cnn ring'\. Searched: 1 run in .*\. Did you mean 'cnn rings'\?"
    with pytest.raises(TrainyardError, match=told):
        resolve("cnn ring", [tmp_path])


def test_where_no_run_is_the_list_of_runs_is_not_offered(tmp_path: Path) -> None:
    told = r"0 runs in .*\. Repeat the command in the folder of the project, or give the directory of the run\.$"
    with pytest.raises(TrainyardError, match=told):
        resolve("cnn", [tmp_path])


def test_an_ambiguous_name_lists_the_ids(make_run: Any, tmp_path: Path) -> None:
    runs = [make_run("same", folder=folder) for folder in ("a", "b")]
    with pytest.raises(TrainyardError, match="2 runs") as error:
        resolve("same", [tmp_path])
    assert all(run.info.id[:8] in str(error.value) for run in runs)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainyardError, match="neither the directory of a run"):
        resolve(str(tmp_path))
    (tmp_path / "manifest.jsonl").touch()
    with pytest.raises(TrainyardError, match=r"is the directory of a sweep\. Give the directory of one of its jobs"):
        resolve(str(tmp_path))


def test_copies_have_one_id(make_run: Any, tmp_path: Path) -> None:
    shutil.copytree(make_run("twin").directory, tmp_path / "copy")
    with pytest.raises(TrainyardError, match=r"2 runs in .*\. Give the directory of one of them:"):
        resolve("twin", [tmp_path])
