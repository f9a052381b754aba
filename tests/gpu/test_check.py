"""Parts run one after the other, each with its own limit, and what they have measured is kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from waiting import FOREVER, LIMIT, is_alive, until, until_gone

# Parts for these tests, in a package of the same name as the real ones.
PARTS = {
    "good": "part.put('one', 'row', found=1)",
    "wrong": "part.put('one', 'row', found=1); part.fail('two is not one'); part.fail('nor three')",
    "raises": "part.put('one', 'row', found=1); raise ValueError('no such thing')",
    "hangs": f"""
child = subprocess.Popen(["sleep", "{FOREVER}"])
part.put('one', 'pids', found=[os.getpid(), child.pid])
try:
    time.sleep({FOREVER})
finally:  # as a service is ended that the part has started
    part.put('one', 'ended', found=True)
""",
}


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a check of the parts above; they are found before the real ones."""
    (tmp_path / "parts").mkdir()
    (tmp_path / "files").mkdir()
    (tmp_path / "parts" / "__init__.py").touch()
    for name, code in PARTS.items():
        body = "\n".join(f"    {line}" for line in code.strip().splitlines())
        # `run` is given a part that knows its name, which must be one of the catalog's.
        text = f"import os, subprocess, time\nfrom part import run\n\ndef main(part):\n{body}\n\nrun(main)\n"
        (tmp_path / "parts" / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]]))
    from check import Check
    from results import Results

    results = Results(tmp_path / "results.json")
    return lambda device="cuda", spent=0.0: Check(results, device, tmp_path / "files", True, spent)


def part(module: str, name: str = "tests", limit: float = FOREVER, **more: Any) -> Any:
    from catalog import Part

    return Part(name, module, limit, "", (), **more)


def written(tmp_path: Path) -> Any:
    return json.loads((tmp_path / "results.json").read_text()).get("parts", {})  # the first record has none


def test_a_part_that_is_done(check: Any, tmp_path: Path) -> None:
    check().run(part("good"))
    own = written(tmp_path)["tests"]
    assert (own["state"], own["error"], own["tables"]) == ("done", None, {"one": {"row": {"found": 1}}})
    assert own["seconds"] > 0


@pytest.mark.parametrize(
    ("module", "error"),
    [("wrong", "two is not one; nor three"), ("raises", "ValueError: no such thing"), ("absent", "No module named")],
)
def test_a_part_that_fails_keeps_what_it_had(check: Any, tmp_path: Path, module: str, error: str) -> None:
    check().run(part(module))
    own = written(tmp_path)["tests"]
    assert own["state"] == "failed"
    assert error in own["error"]
    assert error in own["output"]
    assert own["tables"] == ({} if module == "absent" else {"one": {"row": {"found": 1}}})


def test_a_part_that_hangs_is_ended_with_what_it_has_started(
    check: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its limit is above the time that it takes to begin, on a machine as busy as may be: it is lowered by the test."""
    monkeypatch.setattr("check.GRACE", LIMIT)
    running = check()
    running.run(part("hangs", beside=True))
    pids = until(lambda: written(tmp_path)["tests"]["tables"].get("one", {}).get("pids", {}).get("found"))
    running._running["tests"]._limit = 0.0
    running.wait()
    until_gone(*pids)
    own = written(tmp_path)["tests"]
    assert (own["state"], own["error"]) == ("ended", "not finished within 0 s")
    assert own["tables"]["one"] == {"pids": {"found": pids}, "ended": {"found": True}}


def test_a_part_beside_others_is_waited_for_by_one_that_measures_time(check: Any, tmp_path: Path) -> None:
    running = check()
    running.run(part("good", "compile", beside=True))
    running.run(part("good", "tests"))
    assert list(running._running) == ["compile"]
    running.run(part("good", "steps", timed=True))
    assert not running._running
    assert {own["state"] for own in written(tmp_path).values()} == {"done"}


def test_there_is_a_deadline_for_all_of_them(check: Any, tmp_path: Path) -> None:
    from catalog import TOTAL

    check(spent=TOTAL).run(part("good"))
    assert written(tmp_path)["tests"] == {"state": "not run", "error": f"no time is left (limit: {TOTAL} s)"}
    check("cpu", spent=TOTAL).run(part("good"))  # ten times as long
    assert written(tmp_path)["tests"]["state"] == "done"


COMMAND = [sys.executable, "scripts/gpu/check.py", "--device", "cpu"]


def test_a_check_that_is_cut_off_keeps_what_it_had_and_leaves_nothing_running(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    command = [*COMMAND, "--json", str(file), "--folder", str(tmp_path), "--only", "waits"]
    root = Path(__file__).parents[2]
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: file.exists() and written(tmp_path).get("waits", {}).get("state") == "running", process)
    children = until(lambda: _children(process.pid), process)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM
    until_gone(*children)
    assert written(tmp_path)["waits"]["state"] == "running"


def _children(pid: int) -> list[str]:
    return [child for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split() if is_alive(child)]


def test_a_part_that_there_is_not(tmp_path: Path) -> None:
    command = [*COMMAND, "--json", str(tmp_path / "a"), "--folder", str(tmp_path), "--only", "waits,everything"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 2
    assert "--only everything: the parts are compile, tests, sweep," in done.stderr


# The file


def test_no_change_is_lost_and_no_reader_sees_a_part_of_the_file(tmp_path: Path) -> None:
    from results import Results

    code = f"""
from pathlib import Path
from results import Results
results = Results(Path({str(tmp_path / "results.json")!r}))
for number in range(50):
    results.change(lambda content: content.update(count=content.get("count", 0) + 1, text="x" * 5000))
"""
    writers = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    results = Results(tmp_path / "results.json")
    while any(writer.poll() is None for writer in writers):
        assert len(results.read().get("text", "x" * 5000)) == 5000
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert results.read()["count"] == 150
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]
