"""Figures of two revisions of this project, measured in turns in one session.

Each revision is checked out as a git worktree in a temporary folder, and its own `scripts/bench/run.py` measures its
own code, in one interpreter. A round runs each case of both, one after the other; the order changes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import environment

SEPARATE = ("data", "search")
"""Cases whose sides run in environments of their own, which import the code of the current tree."""
SHARED = tuple(f"scripts/bench/{name}.py" for name in ("work", "ours", "measure"))
OWN = "--own"
SIDES = ("old", "new")


class RevisionError(Exception):
    """Something that the user should correct, in one line."""


@dataclass(frozen=True)
class Revision:
    """Revision that is checked out.

    Attributes:
        name: as the user gave it.
        commit: its hash.
        folder: its worktree.
    """

    name: str
    commit: str
    folder: Path

    @property
    def script(self) -> Path:
        return self.folder / "scripts" / "bench" / "run.py"

    def has(self, case: str) -> bool:
        return (self.folder / "scripts" / "bench" / "cases" / f"{case}.py").is_file()


def commit(name: str) -> str:
    """Return the hash of a revision.

    Raises:
        RevisionError: git does not know it.
    """
    done = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    if done.returncode:
        raise RevisionError(f"{name}: git knows no such revision here, and there is no such file")
    return done.stdout.strip()


@contextmanager
def checked_out(names: Sequence[str]) -> Iterator[list[Revision]]:
    """Check out revisions in a temporary folder, which is removed at the end, also after Ctrl-C or SIGTERM.

    Raises:
        RevisionError: git does not know one of them, or cannot check it out.
    """
    commits = [commit(name) for name in names]
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="trainyard-compare-", ignore_cleanup_errors=True) as folder:
        revisions = [
            Revision(name, found, Path(folder, side)) for side, name, found in zip(SIDES, names, commits, strict=True)
        ]
        try:
            for revision in revisions:
                done = _git("worktree", "add", "--detach", str(revision.folder), revision.commit)
                if done.returncode:
                    raise RevisionError(f"{revision.name}: git cannot check it out: {' '.join(done.stderr.split())}")
            yield revisions
        finally:
            for revision in revisions:
                _git("worktree", "remove", "--force", "--force", str(revision.folder))
            signal.signal(signal.SIGTERM, before)


def common_cases(cases: Sequence[str], old: Revision, new: Revision) -> list[str]:
    """Return the cases that can be compared; print why others are skipped, and which ones measure other work.

    Raises:
        RevisionError: neither revision has a case.
    """
    found = []
    for case in cases:
        lacking = [revision.name for revision in (old, new) if not revision.has(case)]
        if len(lacking) == 2:
            raise RevisionError(f"--only {case}: neither revision has this case")
        if lacking:
            print(f"{case} is skipped: {lacking[0]} does not have this case.")
        elif case in SEPARATE:
            print(f"{case} is skipped: its sides run in separate environments.")
        else:
            found.append(case)
            files = (f"scripts/bench/cases/{case}.py", *SHARED)
            changed = _git("diff", "--name-only", old.commit, new.commit, "--", *files).stdout.split()
            if changed:
                print(f"{case}: {', '.join(changed)} changed between the revisions, so figures may differ.")
    return found


def measured(
    revisions: Sequence[Revision], cases: Sequence[str], rounds: int, python: Path, arguments: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the figures of each revision, with as many values of each side as there are rounds.

    Args:
        revisions: the old and the new one.
        cases: names of cases that both have.
        rounds: the number of times that each case is run.
        python: the interpreter.
        arguments: further ones of `run.py`.
    """
    own = [OWN] if all(OWN in revision.script.read_text(encoding="utf-8") for revision in revisions) else []
    found: list[dict[str, Any]] = [{"cases": {}} for _ in revisions]
    for number in range(rounds):
        for case in cases:
            took = {}
            for index in (0, 1) if number % 2 == 0 else (1, 0):
                begin = time.monotonic()
                add(found[index], case, _run(revisions[index], case, python, [*own, *arguments]))
                took[SIDES[index]] = f"{SIDES[index]} {time.monotonic() - begin:.0f} s"
            print(f"round {number + 1} of {rounds}  {case}: {', '.join(took.values())}", flush=True)
    return found


def add(figures: dict[str, Any], name: str, case: dict[str, Any]) -> None:
    """Add a round of a case to figures; a side that failed in a round has no values."""
    if name not in figures["cases"]:
        figures["cases"][name] = case
        return
    known = figures["cases"][name]
    known["error"] = known["error"] or case["error"]
    tables = {table["title"]: table for table in known["tables"]}
    for table in case["tables"]:
        if table["title"] not in tables:
            known["tables"].append(table)
            continue
        before = tables[table["title"]]
        before["failed"] |= table["failed"]
        for side, values in table["values"].items():
            before["values"].setdefault(side, []).extend(values)
        for side in before["failed"]:
            before["values"].pop(side, None)


def _run(revision: Revision, case: str, python: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """Return one round of a case of a revision; if its run.py fails, a case with an error."""
    scratch = revision.folder.parent
    figures, log = scratch / "figures.json", scratch / "log"
    figures.unlink(missing_ok=True)
    command = [str(python), str(revision.script), "--here", "--only", case, "--rounds", "1", "--json", str(figures)]
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, *arguments],
            cwd=revision.folder,
            env=os.environ | {"TMPDIR": str(scratch)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        try:
            status = process.wait()
        except BaseException:
            process.terminate()  # Ctrl-C has reached it too
            with suppress(subprocess.TimeoutExpired):
                process.wait(10.0)
            process.kill()
            process.wait()
            raise
    if status or not figures.exists():
        said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return {"tables": [], "error": f"status {status}: {said[-1].strip() if said else 'no message'}"}
    found: dict[str, Any] = json.loads(figures.read_text(encoding="utf-8"))["cases"][case]
    return found


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["git", "-C", str(environment.ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)
