"""Commands on runs and sweeps whose files are damaged, or belong to something else: a result, or one paragraph."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped,unused-ignore]

from trainyard.catalog import StoredRun, find

OF_A_RUN = (
    *(["runs", "."], ["runs", ".", "--json"], ["runs", ".", "--sort", "-val/accuracy", "--columns", "optim.lr"]),
    *(["runs", ".", "--where", "val/accuracy>0.1"], ["show", "run"], ["show", "run", "--json"], ["tail", "run", "-F"]),
    *(["compare", "run", "other"], ["compare", "run", "other", "--json"], ["gc", ".", "-y"]),
    *(["rerun", "run", "optim.lr=[1", "--trust"], ["rm", "run", "-y"]),
)
OF_A_SWEEP = (
    *(["sweep", "ls", "."], ["sweep", "attach", "sweep"], ["sweep", "pause", "sweep", "0"], ["runs", "."]),
    *(["sweep", "stop", "sweep", "1"], ["sweep", "clone", "sweep", "0", "optim.lr=0.1"]),
    *(["sweep", "resume", "sweep", "0"], ["sweep", "cancel", "sweep"], ["sweep", "export", "sweep"]),
    *(["sweep", "report", "sweep"], ["sweep", "report", "sweep", "--json"]),
)
INFO: dict[str, Any] = {
    "name": 3, "params": [], "start_time": "x", "id": 5, "uri": 7, "tags": None, "facts": {"git.commit": 3},
    "program": [3], "config_path": 3, "python_path": 3, "mark": 3, "changes": [1],
}  # fmt: skip
LINES = (
    *('{"kind": "status", "time": 1}', '{"kind": "status", "time": 1, "status": [3], "message": ""}'),
    *('{"kind": "tags", "time": 1, "tags": 3}', '{"kind": "inputs", "time": 1, "inputs": [{"a": 1}]}'),
    *('{"kind": "metrics", "time": 1, "values": {"a": 1}}', '{"kind": [1], "time": 1}', "3", "[]", "\\udce9"),
    '{"kind": "metrics", "time": 1, "step": 3, "epoch": "x", "values": {"val/accuracy": 1}}',
    '{"kind": "metrics", "time": 1e300, "step": 3, "epoch": 1, "values": {"val/accuracy": 1}}',
)
CONFIG: dict[str, Any] = {"objective": [1], "direction": 3, "loop": 3, "model": None, "data": "x", "name": [1]}
JOBS = (
    *('{"kind": "job", "num": "x", "overrides": ["a=1"]}', '{"kind": "job", "num": 7, "overrides": [3, null]}'),
    '{"kind": "job", "num": 7, "overrides": ["a=1"], "rungs": 3}',
    *('{"kind": "job", "num": 7, "overrides": "a=1", "subdir": [3]}', '{"kind": "state", "num": 0, "state": [1]}'),
    *('{"kind": "state", "num": 0, "state": null}', '{"kind": "state", "num": 0, "state": "failed", "error": [3]}'),
    '{"kind": "state", "num": 0, "state": "done", "objective": [1], "seconds": "x"}',
    '{"kind": "state", "num": 0, "state": "done", "objective": 1, "seconds": 1, "width": 0}',
    *('{"kind": "began", "time": "x"}', '{"kind": "began", "time": 1e300}', '{"kind": "proposer", "identity": 3}'),
    '{"kind": "application", "file": "x.py", "module": null, "config_path": 3}',
    *('{"kind": "application", "file": 3, "module": 3}', '{"kind": "queued", "units": 3}', "3", "[]", '{"kind": [1]}'),
)


@pytest.fixture
def place(trained: Path, tmp_path: Path) -> Path:
    """A folder with the run `run`, the run `other`, and the sweep `sweep`."""
    source = next(trained.glob("outputs/*/*/run.json")).parent
    for name in ("run", "other"):
        shutil.copytree(source, tmp_path / name)
    shutil.copytree(next(trained.glob("multirun/*/*/manifest.jsonl")).parent, tmp_path / "sweep")
    return tmp_path


def _call(trainyard: Any, place: Path, commands: Any) -> None:
    """Call commands one after another; an exception would end the test."""
    for arguments in commands:
        status, _, said = trainyard(*arguments, cwd=place)
        assert status in (0, 2), (arguments, said)
        assert (status == 2) == bool(said), (arguments, said)


@pytest.mark.parametrize("key", INFO)
def test_a_description_with_other_types(trainyard: Any, place: Path, key: str) -> None:
    file = place / "run/run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: INFO[key]}))
    _call(trainyard, place, OF_A_RUN)
    status, _, said = trainyard("show", "run", cwd=place)
    assert status == 2
    assert f"run.json cannot be read: {key}: {INFO[key]!r} is invalid." in said
    assert len(find([place])) == 3, "the others are listed"


@pytest.mark.parametrize("line", LINES)
def test_a_journal_with_other_lines(trainyard: Any, place: Path, line: str) -> None:
    before = trainyard("show", "other", "--json", cwd=place)[1]["metrics"]
    with (place / "run/metrics.jsonl").open("a") as file:
        file.write(f"{line}\n")
    shown = trainyard("show", "run", "--json", cwd=place)[1]
    assert (shown["state"], shown["metrics"]) == ("finished", before), "the line is skipped"
    _call(trainyard, place, OF_A_RUN)


@pytest.mark.parametrize("key", CONFIG)
def test_a_config_with_other_values(trainyard: Any, place: Path, key: str) -> None:
    file = place / "run/config.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {key: CONFIG[key]}))
    _call(trainyard, place, OF_A_RUN)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", b"\xff\xfe"),
        ("run.json", b"[]"),
        ("metrics.jsonl", b"\xff\xfe\n\x80\n"),
        ("metrics.jsonl", None),
        ("config.yaml", b"\xff\xfe"),
        ("config.yaml", b"a: [1\n"),
        ("config.yaml", None),
        ("checkpoints", b"a file"),
        (".hydra/hydra.yaml", b"hydra: {runtime: 3, job: 3, overrides: 3}"),
        (".hydra/hydra.yaml", b"hydra: {runtime: {config_sources: [3], choices: 3, cwd: [3]}, overrides: {hydra: 3}}"),
        (".hydra/overrides.yaml", b"3"),
        (".hydra/overrides.yaml", b"{a: 1}"),
        (".hydra/overrides.yaml", b"\xff"),
        (".hydra/overrides.yaml", None),
    ],
)
def test_files_of_a_run_with_another_content(trainyard: Any, place: Path, name: str, content: bytes | None) -> None:
    _replace(place / "run" / name, content)
    _call(trainyard, place, OF_A_RUN)


@pytest.mark.parametrize("line", JOBS)
def test_a_manifest_with_other_lines(trainyard: Any, place: Path, line: str) -> None:
    before = trainyard("sweep", "ls", ".", "--json", cwd=place)[1]
    with (place / "sweep/manifest.jsonl").open("a") as file:
        file.write(f"{line}\n")
    assert trainyard("sweep", "ls", ".", "--json", cwd=place)[1] == before, "the line is skipped"
    _call(trainyard, place, OF_A_SWEEP)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("manifest.jsonl", b""),
        ("manifest.jsonl", b"\xff\xfe\n\x80\n"),
        ("manifest.jsonl", None),
        ("0/config.yaml", b"\xff"),
        ("0/config.yaml", b"objective: {a: 1}\ndirection: [1]\n"),
        ("0/.hydra/config.yaml", b"\xff"),
        ("0/.hydra/config.yaml", b"[1]"),
        ("0/.hydra/hydra.yaml", b"3"),
        ("0/metrics.jsonl", None),
        ("0", b"a file"),
        ("report.html", None),
        ("results.csv", None),
    ],
)
def test_files_of_a_sweep_with_another_content(trainyard: Any, place: Path, name: str, content: bytes | None) -> None:
    _replace(place / "sweep" / name, content)
    _call(trainyard, place, OF_A_SWEEP)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[1]",
        b"3",
        b"a: [1\n",
        b"\xff\xfe",
        b"a: 1",
        b"hydra: 3",
        b"hydra: {}",
        b"hydra: {runtime: {cwd: 3}}",
        None,
    ],
)
def test_a_record_of_a_command_with_another_content(trainyard: Any, place: Path, content: bytes | None) -> None:
    _replace(place / "sweep/multirun.yaml", content)
    status, shown, said = trainyard("sweep", "resume", "sweep", cwd=place)
    assert (status, shown) == (2, "")
    assert "multirun.yaml" in said


@pytest.mark.parametrize("path", ["file", "dangling", "empty", "x" * 300, "caf\udce9", "", "file/x", "run"])
def test_paths_of_other_things(trainyard: Any, place: Path, path: str) -> None:
    (place / "file").write_bytes(b"\xff\xfe")
    (place / "dangling").symlink_to("nowhere")
    (place / "empty").mkdir()
    commands = (
        *(["runs", path], ["show", path], ["tail", path, "-F"], ["compare", path, "other"], ["gc", "-y", path]),
        *(["rerun", path, "optim.lr=[1"], ["sweep", "ls", path], ["sweep", "attach", path], ["sweep", "resume", path]),
        *(["sweep", "resume", path, "0"], ["sweep", "pause", path, "0"], ["sweep", "clone", path, "0", "a=1"]),
        *(["sweep", "cancel", path], ["sweep", "report", path], ["sweep", "export", path], ["new", path]),
        *(["sweep", "resume", "sweep", "--app", path], ["sweep", "export", "sweep", "--to", path]),
    )
    _call(trainyard, place, [each for each in commands if path != "run" or each[0] not in ("rerun", "gc")])


def test_a_file_that_cannot_be_read_is_named(trainyard: Any, place: Path) -> None:
    _replace(place / "run/metrics.jsonl", None)
    status, _, said = trainyard("show", "run", cwd=place)
    assert (status, said) == (2, "run/metrics.jsonl cannot be read or written: Is a directory.\n")
    assert StoredRun(place / "other", find([place / "other"])[0].info).history.series


def _replace(path: Path, content: bytes | None) -> None:
    """Put a file with this content, or an empty folder, in place of a file or folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
