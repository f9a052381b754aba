"""Signals to, and the death of, the process that runs tasks. Each test runs a script of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import LIMIT, until

SCRIPT = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
from trainyard.sweep.executor import LocalExecutor, Policy, local, workers
from trainyard.sweep.executor.slots import Slot
from trainyard.sweep.executor.task import Task
from trainyard.sweep.run_tasks import Callbacks, run_tasks

folder = Path(sys.argv[1])

def polite(num):
    def stop(signum, frame):
        (folder / f"checkpoint{num}").touch()
        sys.exit(143)
    signal.signal(signal.SIGTERM, stop)
    (folder / f"running{num}").touch()
    while True:  # a signal just before one long sleep would be handled after it
        time.sleep(0.05)

def stubborn(num):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    subprocess.Popen(["sleep", "3600"])
    if os.fork() == 0:
        time.sleep(3600)
    (folder / f"running{num}").touch()
    time.sleep(3600)

def plain(num):
    (folder / f"running{num}").touch()
    time.sleep(3600)

class Clock:  # stands still until the test says that it is late
    time = time.time

    def monotonic(self):
        return 1000.0 * (folder / "late").exists()

def note(event):
    (folder / f"{event.kind}{event.num}").touch()

tasks = [Task(num, globals()[name], num) for num, name in enumerate(sys.argv[2].split(","))]
options = json.loads(sys.argv[4])
if "timeout" in options:
    local.time = workers.time = Clock()
executor = LocalExecutor([Slot(0), Slot(1)], preload=sys.argv[3].split())
try:
    results = run_tasks(executor, tasks, Policy(**options), Callbacks(note, (folder / "begun").touch))
except KeyboardInterrupt:
    print(json.dumps("KeyboardInterrupt"))
else:
    print(json.dumps([results.signum, [[o.state, o.error, o.attempts] for o in results.outcomes]]))
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""


class Command:
    """The script at work, and all processes that come from it: they carry a mark in their environment."""

    def __init__(self, folder: Any, tasks: Any, preload: str = "", options: str = "{}") -> None:
        self.folder = folder
        self.mark = f"MARK={uuid.uuid4()}".encode()
        name, _, value = self.mark.decode().partition("=")
        script = folder / "script.py"
        script.write_text(textwrap.dedent(SCRIPT))
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(folder), tasks, preload, options],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), name: value},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def wait_for(self, *names: Any) -> None:
        until(lambda: all((self.folder / name).exists() for name in names), self.process)

    def server(self) -> Any:
        return int(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text())

    def alive(self) -> Any:
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                state = (path / "stat").read_text().rpartition(")")[2].split()[0]
                if state != "Z" and self.mark in (path / "environ").read_bytes().split(b"\0"):
                    found.append(int(path.name))
            except OSError:
                continue
        return found

    def wait_until_gone(self) -> None:
        until(lambda: not self.alive())

    def result(self) -> Any:
        output, errors = self.process.communicate(timeout=LIMIT)
        assert self.process.returncode == 0, errors.decode()
        assert errors == b""
        return json.loads(output)


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Any]:
    commands = []

    def start(*arguments: Any) -> Any:
        commands.append(Command(tmp_path, *arguments))
        return commands[-1]

    yield start
    for each in commands:
        for pid in each.alive():
            os.kill(pid, signal.SIGKILL)
        each.process.communicate()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_lets_tasks_save_and_starts_no_more(command: Any, tmp_path: Path, signum: Any) -> None:
    script = command("polite,plain,polite,polite")
    script.wait_for("running0", "running1")
    os.killpg(script.process.pid, signum)  # as a terminal does
    caught, outcomes = script.result()
    assert caught == signum
    name = signal.Signals(signum).name
    assert outcomes == [
        ["interrupted", "SystemExit: 143", 1],
        ["interrupted", "its process was killed by SIGTERM before it returned a result", 1],
        ["interrupted", f"interrupted by {name}", 0],
        ["interrupted", f"interrupted by {name}", 0],
    ]
    assert sorted(path.name for path in tmp_path.glob("checkpoint*")) == ["checkpoint0"]
    script.wait_until_gone()


@pytest.mark.parametrize("preload", ["", "torch"])
def test_a_signal_before_the_first_task_begins(command: Any, preload: str) -> None:
    script = command("polite,polite", preload)
    script.wait_for("begun")
    script.process.send_signal(signal.SIGTERM)
    caught, outcomes = script.result()
    assert caught == signal.SIGTERM
    assert {state for state, *_ in outcomes} == {"interrupted"}
    script.wait_until_gone()


LATE = """
import os, signal, socket, time
from trainyard.sweep.executor import agent_process
for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
    signal.signal(each, signal.SIG_IGN)  # as `serve` does
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
agent = agent_process._Agent(theirs)
become_worker = agent.become_worker
agent.become_worker = lambda parent: (time.sleep(0.3), become_worker(parent))
agent.fork(0, os.open(os.devnull, os.O_RDWR), os.open(os.devnull, os.O_RDWR))
agent.send_signal(0, signal.SIGTERM)
print(os.waitstatus_to_exitcode(os.waitpid(agent.pids[0], 0)[1]))
"""


def test_a_signal_that_comes_before_a_worker_has_begun_is_not_lost() -> None:
    """The fork server ignores it, and so does a process that was forked this instant."""
    done = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True, check=True)
    assert done.stdout == f"{-signal.SIGTERM}\n"


def test_a_task_that_takes_no_notice_of_the_first_signal_ends_at_its_timeout(command: Any, tmp_path: Path) -> None:
    script = command("stubborn,plain,plain", "", '{"timeout": 2, "grace": 0.1}')
    script.wait_for("running0", "running1")
    script.process.send_signal(signal.SIGINT)
    script.wait_for("interrupted2")
    (tmp_path / "late").touch()
    _, outcomes = script.result()
    assert [error for _, error, _ in outcomes] == [
        "its process was killed by SIGKILL before it returned a result",
        "its process was killed by SIGTERM before it returned a result",
        "interrupted by SIGINT",
    ]
    assert {state for state, *_ in outcomes} == {"interrupted"}
    script.wait_until_gone()


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_kills_all_children_and_theirs(command: Any, second: Any) -> None:
    script = command("stubborn,stubborn,plain")
    script.wait_for("running0", "running1")
    assert len(script.alive()) == 8  # the script, its server, two workers with two children each
    script.process.send_signal(signal.SIGINT)
    script.wait_for("interrupted2")
    assert len(script.alive()) == 8
    script.process.send_signal(second)
    script.wait_until_gone()
    assert script.result() == "KeyboardInterrupt"


def test_the_second_signal_even_while_the_server_hangs(command: Any) -> None:
    script = command("stubborn,plain,plain")
    script.wait_for("running0", "running1")
    os.kill(script.server(), signal.SIGSTOP)
    script.process.send_signal(signal.SIGINT)
    script.wait_for("interrupted2")
    script.process.send_signal(signal.SIGINT)
    script.wait_until_gone()
    assert script.result() == "KeyboardInterrupt"


@pytest.mark.parametrize("tasks", ["stubborn,polite", "plain,plain"])
def test_when_the_caller_is_killed_nothing_is_left(command: Any, tasks: str) -> None:
    script = command(tasks)
    script.wait_for("running0", "running1")
    assert len(script.alive()) >= 4
    script.process.kill()
    script.wait_until_gone()


def test_when_the_caller_and_its_server_are_killed_no_task_is_left(command: Any) -> None:
    script = command("plain,polite")
    script.wait_for("running0", "running1")
    server = script.server()
    os.kill(server, signal.SIGSTOP)  # so that it does not see the caller's end
    script.process.kill()
    script.process.wait()
    os.kill(server, signal.SIGKILL)
    script.wait_until_gone()


def test_when_the_caller_is_killed_before_the_server_is_ready(command: Any) -> None:
    script = command("plain", "torch")
    script.wait_for("begun")
    script.process.kill()
    script.wait_until_gone()
    assert not (script.folder / "running0").exists()
