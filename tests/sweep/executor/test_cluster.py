"""Executor over agents: real agents as processes of this machine, over both transports, and the ends of their tasks.

The tasks are functions of this file, sent by cloudpickle; what they share is in files.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from agent_processes import AgentProcesses

from trainyard.errors import TrainyardError
from trainyard.nodes import Nodes
from trainyard.sweep.executor import Policy, cluster, lease, meeting, remote_agent
from trainyard.sweep.executor.cluster import ClusterExecutor
from trainyard.sweep.executor.code_version import CodeVersion
from trainyard.sweep.executor.remote_agent import main
from trainyard.sweep.executor.remotes import ClusterSettings
from trainyard.sweep.executor.shipping.files import HeadFiles
from trainyard.sweep.executor.slots import Slot
from trainyard.sweep.executor.task import Task
from trainyard.sweep.ray_settings import RaySettings
from trainyard.sweep.run_tasks import Callbacks, run_tasks
from trainyard.sweep.slurm_settings import SlurmSettings

BOTH = pytest.mark.parametrize("transport", ["tcp", "files"])


@contextmanager
def an_executor(tmp_path: Path, agents: int = 2, **options: Any) -> Iterator[Any]:
    """An executor with so many agents of one slot each, and its pool."""
    pool = AgentProcesses(agents, tells=options.pop("tells", True))
    told: list[str] = []
    own = {"address": "127.0.0.1", "slots": {"max_jobs": 1}, "patience": options.pop("patience", 30.0)}
    settings = ClusterSettings(**{**own, **options.pop("settings", {})})
    executor = ClusterExecutor(
        [Slot(index) for index in range(agents)],
        pool,
        tmp_path / "sweep",
        preload=(),
        grace=options.pop("grace", 5.0),
        settings=settings,
        tell=told.append,
    )
    executor.start()
    try:
        executor.wait(0)
        yield executor, pool, told
    finally:
        executor.close()


def outcomes(executor: Any, tasks: Any, on_tick: Callable[[], Any] = lambda: None, **policy: Any) -> Any:
    return run_tasks(executor, tasks, Policy(**policy), Callbacks(on_tick=on_tick)).outcomes


def once(condition: Callable[[], Any], action: Callable[[], Any]) -> Callable[[], None]:
    """What is done the first time that something holds."""
    done: list[Any] = []

    def look() -> None:
        if not done and condition():
            done.append(None)
            action()

    return look


class Patient:
    """Task that notes each of its processes in a file, and ends when `go` is there; at SIGTERM it leaves a mark."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, number: int) -> Any:
        def asked(*_: Any) -> None:
            (self.folder / f"asked{number}").touch()
            raise SystemExit(143)

        signal.signal(signal.SIGTERM, asked)
        with (self.folder / f"pids{number}").open("a") as file:
            file.write(f"{os.getppid()} {os.getpid()}\n")
        while not (self.folder / "go").exists():
            time.sleep(0.01)
        return number * 10


def attempts(folder: Path, number: int) -> list[list[str]]:
    path = folder / f"pids{number}"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


@BOTH
def test_tasks_run_on_agents_as_on_this_machine(tmp_path: Path, transport: Any) -> None:
    def task(number: int) -> Any:
        if number == 2:
            raise ValueError("two")
        if number == 3:
            os._exit(3)
        if number == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        print(f"this is {number}")
        return {"number": number, "threads": os.environ["OMP_NUM_THREADS"], "cwd": str(Path.cwd())}

    with an_executor(tmp_path, settings={"transport": transport}) as (executor, _, _):
        tasks = [Task(number, task, number, log=tmp_path / "logs" / str(number)) for number in range(6)]
        found = outcomes(executor, tasks)
    assert [it.state for it in found] == ["done", "done", "failed", "lost", "lost", "done"]
    assert found[0].value == {"number": 0, "threads": "1", "cwd": str(Path.cwd())}
    assert found[2].error == "ValueError: two"
    assert 'raise ValueError("two")' in found[2].traceback
    assert found[3].error == "its process ended with status 3 before it returned a result"
    assert found[4].error == "its process was killed by SIGKILL before it returned a result"
    assert (tmp_path / "logs" / "5").read_text() == "this is 5\n"


def test_a_task_ends_when_its_time_is_over(tmp_path: Path) -> None:
    with an_executor(tmp_path, 1) as (executor, _, _):
        (outcome,) = outcomes(executor, [Task(0, Patient(tmp_path), 0)], timeout=0.3)
    assert (outcome.state, outcome.error) == ("timeout", "took longer than 0.3 s")


@BOTH
def test_tasks_of_an_agent_that_is_killed_go_on_elsewhere(tmp_path: Path, transport: Any) -> None:
    with an_executor(tmp_path, settings={"transport": transport}) as (executor, pool, told):

        def kill() -> None:
            pool.kill("p0")
            (tmp_path / "go").touch()

        tick = once(lambda: attempts(tmp_path, 0) and attempts(tmp_path, 1), kill)
        found = outcomes(executor, [Task(number, Patient(tmp_path), number) for number in (0, 1)], tick)
        again = outcomes(executor, [Task(2, Patient(tmp_path), 2)])  # the pool has placed another one
    assert [(it.state, it.value, it.attempts) for it in [*found, *again]] == [
        ("done", 0, 1),
        ("done", 10, 1),
        ("done", 20, 1),
    ]
    assert sorted(len(attempts(tmp_path, number)) for number in (0, 1)) == [1, 2]
    assert any("is lost: its process ended with -9" in line for line in told)
    assert not (tmp_path / "asked0").exists()


def test_an_agent_that_says_nothing_is_lost_without_word_from_its_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_MARGIN", 0.1)
    with an_executor(tmp_path, patience=3.0, grace=0.2, tells=False) as (executor, pool, told):

        def stop() -> None:
            pool.kill("p0")
            (tmp_path / "go").touch()

        tick = once(lambda: attempts(tmp_path, 0) and attempts(tmp_path, 1), stop)
        found = outcomes(executor, [Task(number, Patient(tmp_path), number) for number in (0, 1)], tick)
    assert [(it.state, it.attempts) for it in found] == [("done", 1)] * 2
    assert any("is lost: the agent does not respond" in line for line in told)
    assert pool.looks == 2  # when it was silent, and when it was given up


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR2])
def test_tasks_of_an_agent_that_leaves_end_first_and_go_on_elsewhere(tmp_path: Path, signum: Any) -> None:
    with an_executor(tmp_path) as (executor, pool, told):

        def leave() -> None:
            pool.kill("p0", signum)

        def go() -> None:
            (tmp_path / "go").touch()

        ticks = [
            once(lambda: attempts(tmp_path, 0) and attempts(tmp_path, 1), leave),
            once(lambda: list(tmp_path.glob("asked*")), go),
        ]
        tasks = [Task(number, Patient(tmp_path), number) for number in (0, 1)]
        found = outcomes(executor, tasks, lambda: [tick() for tick in ticks])
    assert [(it.state, it.attempts) for it in found] == [("done", 1)] * 2
    (asked,) = tmp_path.glob("asked*")
    assert sorted(len(attempts(tmp_path, number)) for number in (0, 1)) == [1, 2]
    assert len(attempts(tmp_path, int(asked.name[-1]))) == 2
    assert any(f"leaves: the agent received {signum.name}" in line for line in told)


@BOTH
def test_without_its_head_an_agent_has_its_tasks_end_and_ends(tmp_path: Path, transport: Any) -> None:
    with an_executor(tmp_path, 1, patience=3.0, settings={"transport": transport}) as (executor, pool, _):
        executor.expect(1)
        while not executor.ready:
            executor.wait(0.1)
        executor.launch(0, Task(0, Patient(tmp_path), 0), [executor.ready[0].index], Policy())
        while not attempts(tmp_path, 0):
            executor.wait(0.1)
        executor._transport.close(flush=0)  # the head is killed
        (process,) = pool.processes.values()
        process.wait(60)
        assert (tmp_path / "asked0").exists()
        assert process.returncode == 0
        assert meeting.left_agents(tmp_path / "sweep") == {}
        executor._lease.release()
        executor._transport = None


def test_a_head_waits_for_the_agents_of_the_one_before(tmp_path: Path) -> None:
    """What they run must not be started twice."""
    with an_executor(tmp_path, 1, patience=60.0) as (first, pool, _):
        first.expect(1)
        while not first.ready:
            first.wait(0.1)
        first.launch(0, Task(0, Patient(tmp_path), 0), [first.ready[0].index], Policy())
        while not attempts(tmp_path, 0) or not meeting.left_agents(tmp_path / "sweep"):
            first.wait(0.1)
        first._transport.close(flush=0)
        first._lease.release()
        first._transport = None
        with an_executor(tmp_path, 1) as (_, _, told):
            assert (tmp_path / "asked0").exists()
            assert told[0] == "Waiting for 1 agent of the previous head to end."
        pool.close()


def test_a_task_that_ends_its_agents_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "LOSSES", 1)

    def task(_: Any) -> Any:
        os.kill(int(os.environ["AGENT"]), signal.SIGKILL)
        time.sleep(60)

    def with_agent(number: int) -> Any:
        status = Path(f"/proc/{os.getppid()}/status").read_text()
        os.environ["AGENT"] = next(line.split()[1] for line in status.splitlines() if line.startswith("PPid"))
        return task(number)

    with an_executor(tmp_path, 1) as (executor, _, _):
        found = outcomes(executor, [Task(0, with_agent)])
    assert [(it.state, it.error) for it in found] == [("lost", "2 agents were lost while the job was running")]


def test_an_agent_without_work_ends_and_another_is_placed_when_there_is_some(tmp_path: Path) -> None:
    with an_executor(tmp_path, settings={"idle": 0.0}) as (executor, _, _):
        outcomes(executor, [Task(number, abs, number) for number in (0, 1)])
        executor.expect(0)
        until = time.monotonic() + 60
        while executor.ready and time.monotonic() < until:
            executor.wait(0.1)
        assert executor.ready == ()
        assert [it.value for it in outcomes(executor, [Task(0, abs, -3)])] == [3]


# Tasks of several agents


def test_a_task_of_several_agents_has_a_part_on_each(tmp_path: Path) -> None:
    def task(number: int) -> Any:
        nodes = Nodes.find()
        assert nodes is not None
        if nodes.index:
            _, port, work = nodes.wait(60)
            (tmp_path / "second").write_text(f"{port} {work} {nodes.first} of {nodes.total}")
            return None
        nodes.announce(number, "work")
        return [nodes.own, nodes.devices]

    def fails(_: Any) -> Any:
        nodes = Nodes.find()
        assert nodes is not None
        if nodes.index:
            raise ValueError("two")
        time.sleep(600)

    with an_executor(tmp_path) as (executor, _, _):
        found = outcomes(executor, [Task(0, task, 7, slots=2)])
        wrong = outcomes(executor, [Task(1, fails, slots=2)])
        alone = outcomes(executor, [Task(2, lambda _: Nodes.find())])
    assert found[0].value == [1, (1, 1)]
    assert (tmp_path / "second").read_text() == "7 work 1 of 2"
    assert [(it.state, it.error) for it in wrong] == [("failed", "ValueError: two")]
    assert [it.value for it in alone] == [None]
    assert not list((tmp_path / "sweep" / "agents" / "meetings").glob("*"))


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_a_task_that_lost_one_of_its_agents_goes_on_when_the_other_parts_are_gone(tmp_path: Path, signum: Any) -> None:
    def task(number: int) -> Any:
        before = attempts(tmp_path, number)[:2]
        if len(before) > 1 and any(Path(f"/proc/{pid}").exists() for _, pid in before):
            (tmp_path / "two at once").touch()
        return Patient(tmp_path)(number)

    with an_executor(tmp_path) as (executor, pool, _):
        ticks = [
            once(lambda: len(attempts(tmp_path, 0)) == 2, lambda: pool.kill("p0", signum)),
            once(lambda: len(attempts(tmp_path, 0)) == 4, (tmp_path / "go").touch),
        ]
        found = outcomes(executor, [Task(0, task, 0, slots=2)], lambda: [tick() for tick in ticks])
    assert [(it.state, it.value, it.attempts) for it in found] == [("done", 0, 1)]
    assert not (tmp_path / "two at once").exists()


# One head


def test_a_second_head_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the lock, and where a file system has none, by the first one's sign of life."""
    with an_executor(tmp_path, 1):
        with pytest.raises(TrainyardError, match="another process is running this sweep"), an_executor(tmp_path, 1):
            pass
        monkeypatch.setattr("fcntl.flock", no_locks)
        while not (tmp_path / "sweep" / "agents" / "of_the_head").exists():
            time.sleep(0.05)
        with pytest.raises(TrainyardError, match="another process is running this sweep"), an_executor(tmp_path, 1):
            pass


def no_locks(fd: int, operation: int) -> None:
    raise OSError(95, "Operation not supported")


def test_the_lease_of_a_head_that_was_killed_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "WATCHED", 0.1)
    (tmp_path / "sweep" / "agents").mkdir(parents=True)
    (tmp_path / "sweep" / "agents" / "of_the_head").write_text("killed 12")
    with an_executor(tmp_path, 1) as (executor, _, _):
        assert executor.started


def test_a_head_that_another_has_replaced_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was held up for so long that the other one saw no sign of it."""
    monkeypatch.setattr("fcntl.flock", no_locks)
    monkeypatch.setattr(lease, "WATCHED", 0.0)
    with an_executor(tmp_path, 1) as (first, _, _), an_executor(tmp_path, 1):
        while not first._lease.lost:
            time.sleep(0.05)
        first._next_look = 0
        with pytest.raises(TrainyardError, match="another process has taken over this sweep"):
            first.wait(0)


# Bad input


def test_an_agent_with_other_code_is_refused_naming_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = CodeVersion("trainyard 0000", "0")
    monkeypatch.setattr(HeadFiles, "version", other)
    with an_executor(tmp_path, 1) as (executor, pool, told):
        executor.expect(1)
        while not told:
            executor.wait(0.1)
        assert "was refused: the agent runs trainyard " in told[0]
        assert "but the head runs trainyard 0000." in told[0]
        (process,) = pool.processes.values()
        assert process.wait(60) == 2
    assert "The head refuses this agent: the agent runs trainyard " in pool.output[0]


def test_an_agent_that_does_not_see_the_directory(tmp_path: Path, capsys: Any) -> None:
    assert main([str(tmp_path / "nowhere")]) == 2
    assert f"does not see {tmp_path / 'nowhere'}: the directory of a sweep" in capsys.readouterr().err


def test_an_agent_with_a_wrong_token(tmp_path: Path, capsys: Any) -> None:
    with an_executor(tmp_path, 0) as (executor, _, told):
        token = tmp_path / "sweep" / "agents" / "token"
        assert token.stat().st_mode & 0o77 == 0
        token.write_text("0" * 64)
        before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)}
        try:
            assert main([str(tmp_path / "sweep")]) == 2
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)
        assert "the token does not match the token of the head" in capsys.readouterr().err
        executor._next_look = 0
        executor.wait(0)
        assert told == ["A connection was refused: the agent has a different token."]


@pytest.mark.parametrize("kind", [SlurmSettings, RaySettings])
def test_an_address_that_this_machine_does_not_have(kind: Any, tmp_path: Path) -> None:
    key = f"hydra.launcher.{kind.ADDRESS}"
    settings = {"address": "192.0.2.1", "address_key": key}
    with pytest.raises(TrainyardError) as error, an_executor(tmp_path, 1, settings=settings):
        pass
    assert hasattr(kind(), kind.ADDRESS)
    assert str(error.value).startswith(f"{key}: '192.0.2.1' is invalid. Expected an address")


def test_an_agent_that_cannot_reach_the_head_names_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    meeting.write_meeting(tmp_path, meeting.HeadAddress(1, "tcp", "127.0.0.1", 9), "0" * 64)
    monkeypatch.setattr(remote_agent, "_WELCOME", 0.2)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert main([str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("This agent exits: the head at 127.0.0.1:9 does not respond. If this node cannot reach")
    assert len(said.splitlines()) == 1  # the head shows the last line
