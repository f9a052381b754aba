"""Forked programs are what started ones are: their code, files, folder, environment, signals and ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import forked
import pytest
from forked import Forked
from waiting import LIMIT

LOOK = """
import logging, os, signal, sys, threading, __main__
print(sys.argv, sys.path[:2], os.getcwd(), __name__, __main__.__dict__ is globals(), globals().get("__file__"))
print(sorted(set(os.environ) - {"LC_CTYPE"}), os.getsid(0) == os.getpid(), len(threading.enumerate()))
print(repr(sys.stdin.read()), sys.stdout.line_buffering, sys.stdout.encoding.lower(), sys.stderr.line_buffering)
print(os.sched_getaffinity(0))
print(logging.root.handlers, logging.root.level, signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
print("err", file=sys.stderr)
"""
ENDS = {
    "status": "import sys; sys.exit(3)",
    "message": "import sys; sys.exit('no')",
    "error": "raise LookupError('x')",
    "killed": "import os; os.kill(os.getpid(), 9)",
    "terminated": "import os; os.kill(os.getpid(), 15)",
    "interrupted": "import os, time; os.kill(os.getpid(), 2); time.sleep(60)",
    "no": "import sys; sys.exit(None)",
    "large": "import sys; sys.exit(259)",
    "at exit": "import atexit; atexit.register(print, 'last')",
    "error at exit": "import atexit; atexit.register(int, 'x'); print('first')",
    "error after output": "print('first'); raise LookupError('x')",
    "interrupted at exit": "import atexit; atexit.register(print, 'last'); raise KeyboardInterrupt",
    "closed output": "import sys; print('first'); sys.stdout.close()",
    "thread": "import threading, time; threading.Thread(target=lambda: (time.sleep(0.1), print('late'))).start()",
    "at once": "import os; print('lost'); os._exit(5)",
}


def started(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, **options)


def environment(*folders: Path) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if name.startswith("PYTHON") or name == "PATH"}
    return own | {"PYTHONPATH": os.pathsep.join(map(str, folders)), "MINE": "1"}


@pytest.mark.parametrize("session", [True, False])
@pytest.mark.parametrize("kind", ["script", "-c", "-m"])
def test_it_finds_what_a_started_program_finds(tmp_path: Path, kind: str, session: bool) -> None:
    (tmp_path / "look.py").write_text(LOOK)
    what = {"script": ["look.py"], "-c": ["-c", LOOK], "-m": ["look"]}[kind]
    command = [sys.executable, *(["-m", *what] if kind == "-m" else what), "a", "-b"]
    options: dict[str, Any] = {"cwd": tmp_path, "env": environment(tmp_path), "start_new_session": session}
    own, its = forked.run(command, **options), started(command, **options)
    assert its.returncode == 0
    assert (own.returncode, own.stdout, own.stderr) == (its.returncode, its.stdout, its.stderr)


@pytest.mark.parametrize("end", ENDS)
def test_it_ends_as_a_started_program_ends(end: str) -> None:
    command = [sys.executable, "-c", ENDS[end]]
    own, its = (run(command, env=environment()) for run in (forked.run, started))
    assert (own.returncode, own.stdout) == (its.returncode, its.stdout)
    assert own.stderr.splitlines()[-1:] == its.stderr.splitlines()[-1:]


CHILDREN = """
import os, subprocess, sys
for number in range(3):
    code = f"import os, sys; print({number}, os.getppid(), os.getsid(0) == os.getpid(), os.environ['MINE'], sys.argv)"
    own = subprocess.Popen(
        [sys.executable, "-c", code + "; sys.exit(7)", "x"], stdout=subprocess.PIPE, text=True,
        start_new_session=number == 1, env=os.environ | {"MINE": str(number)},
    )
    said = own.communicate()[0].replace(str(os.getpid()), "parent")
    print(said, own.returncode, flush=True)
import multiprocessing
context = multiprocessing.get_context("spawn")
with context.Pool(1) as pool:
    print(pool.map(abs, [-3]))
"""


def test_its_own_processes_are_its_children() -> None:
    command = [sys.executable, "-c", CHILDREN]
    own, its = (run(command, env=environment()) for run in (forked.run, started))
    assert its.returncode == 0, its.stderr
    assert (own.returncode, own.stdout, own.stderr) == (its.returncode, its.stdout, its.stderr)


def test_a_signal_from_outside() -> None:
    code = "import time; print('here', flush=True); time.sleep(600)"
    process = Forked([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(LIMIT) == -signal.SIGTERM
    process.communicate()


def test_imports_are_done() -> None:
    code = "import sys; print('torch' in sys.modules, 'mlflow' in sys.modules)"
    assert forked.run([sys.executable, "-c", code]).stdout == "True True\n"


@pytest.mark.parametrize(
    ("flags", "variables"), [(["-I"], {}), ([], {"PYTHONWARNINGS": "error"}), ([], {"PYTHONUTF8": "0"})]
)
def test_what_only_a_start_can_do_is_refused(flags: list[str], variables: dict[str, str]) -> None:
    with pytest.raises(AssertionError, match="has to be started"):
        Forked([sys.executable, *flags, "-c", ""], env=environment() | variables)
