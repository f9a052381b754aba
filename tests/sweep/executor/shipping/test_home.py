"""Tasks on agents that share no folder with their head: what they write comes home, and goes to where they go on.

The agents are processes of this machine, started as on nodes: from a copy of the code, in folders of their own.
"""

from __future__ import annotations

import os
import signal
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from agent_processes import AgentProcesses

from trainyard.errors import ConfigError, TrainyardError
from trainyard.sweep.executor import Policy
from trainyard.sweep.executor.cluster import ClusterExecutor
from trainyard.sweep.executor.remotes import ClusterSettings
from trainyard.sweep.executor.shipping import courier, node
from trainyard.sweep.executor.shipping.home import HomeFiles
from trainyard.sweep.executor.shipping.storage import Storage
from trainyard.sweep.executor.slots import Slot
from trainyard.sweep.executor.task import Common, Task
from trainyard.sweep.run_tasks import Callbacks, run_tasks
from trainyard.track.facts import git_facts


@contextmanager
def an_executor(tmp_path: Path, agents: int = 1) -> Iterator[Any]:
    """An executor whose agents see nothing of the sweep's directory, its pool, and what was told."""
    told: list[str] = []
    files = HomeFiles(Storage(f"file://{tmp_path}/store"), tmp_path / "sweep", told.append)
    files.code = [str(Path(courier.__file__).parents[4])]  # not the tests
    files.pack(tmp_path / "code.zip")
    with zipfile.ZipFile(tmp_path / "code.zip") as archive:
        archive.extractall(tmp_path / "code")
    pool = AgentProcesses(agents, tmp_path / "code", files=files)
    settings = ClusterSettings(address="127.0.0.1", slots={"max_jobs": 1}, patience=30.0)
    slots = [Slot(index) for index in range(agents)]
    executor = ClusterExecutor(
        slots, pool, tmp_path / "sweep", preload=(), grace=5.0, settings=settings, files=files, tell=told.append
    )
    executor.start()
    try:
        yield executor, pool, told
    finally:
        executor.close()


def outcomes(executor: Any, tasks: Any, on_tick: Callable[[], Any] = lambda: None) -> Any:
    return run_tasks(executor, tasks, Policy(), Callbacks(on_tick=on_tick)).outcomes


def task(tmp_path: Path, function: Any, number: int = 0) -> Task:
    folder = tmp_path / "sweep" / str(number)
    return Task(number, function, folder, log=folder / "output.log", folders=(folder,))


def test_what_a_task_writes_comes_home(tmp_path: Path) -> None:
    home, of_sweeps = tmp_path / "sweep" / "0", str(tmp_path).lstrip("/")

    def work(folder: Path) -> Any:
        assert folder.name == "0"
        assert of_sweeps not in str(folder)
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "best.pt").write_bytes(b"weights")
        print("this is", folder.name)
        return {"folder": folder, "git": git_facts(Path.cwd())}

    with an_executor(tmp_path) as (executor, _, _):
        (found,) = outcomes(executor, [task(tmp_path, work)])
    assert found.state == "done", found.error
    assert found.value == {"folder": home, "git": git_facts(Path.cwd())}
    assert (home / "checkpoints" / "best.pt").read_bytes() == b"weights"
    assert (home / "output.log").read_text() == "this is 0\n"
    assert list((tmp_path / "store").rglob("*.pt")) == []  # all of it is home


def test_what_tasks_have_in_common_has_the_paths_of_the_node(tmp_path: Path) -> None:
    common = Common({"sweep": tmp_path / "sweep"})

    def work(folder: Path, common: Any) -> bool:
        return folder.parent == common["sweep"]

    tasks = [replace(task(tmp_path, work, number), common=common) for number in range(2)]
    with an_executor(tmp_path) as (executor, _, _):
        assert [(each.value, each.error) for each in outcomes(executor, tasks)] == [(True, None)] * 2


def test_a_task_has_the_slots_of_one_machine(tmp_path: Path) -> None:
    with an_executor(tmp_path, agents=2) as (executor, _, _):
        assert (executor.room, executor.shares_disk) == (1, False)


def test_a_task_goes_on_elsewhere_with_what_it_has_written(tmp_path: Path) -> None:
    """Its agent is killed, and the storage failed for a while when it ends."""
    go, down = tmp_path / "go", tmp_path / "down"
    home = tmp_path / "sweep" / "0"

    def work(folder: Path) -> Any:
        import time

        if not (folder / "begun").exists():
            (folder / "begun").write_text(str(os.getppid()))
            time.sleep(600)
        while not go.exists():
            time.sleep(0.01)
        (folder / "end").write_text("end")
        return (folder / "begun").read_text()

    steps: list[str] = []

    def tick() -> None:
        if not steps and (home / "begun").exists():
            steps.append((home / "begun").read_text())
            pool.kill("p0")
        if len(steps) == 1 and len(pool.processes) == 1 and pool.started == 2 and executor.ready:
            steps.append("down")
            (tmp_path / "store").rename(down)
            (tmp_path / "store").touch()
            go.touch()
        if len(steps) == 2 and any("the storage failed" in line for line in told):
            steps.append("up")
            (tmp_path / "store").unlink()
            down.rename(tmp_path / "store")

    with an_executor(tmp_path) as (executor, pool, told):
        (found,) = outcomes(executor, [task(tmp_path, work)], tick)
    assert (found.state, found.value) == ("done", steps[0]), (found.error, pool.output)
    assert (home / "end").read_text() == "end"
    assert steps[1:] == ["down", "up"]
    assert any("is lost: its process ended with -9" in line for line in told)
    assert "The transfer has succeeded." in told


def test_an_agent_that_does_not_see_the_storage(tmp_path: Path) -> None:
    with an_executor(tmp_path) as (executor, pool, _):
        executor.wait(0)
        for each in (tmp_path / "store").iterdir():
            each.rename(tmp_path / "elsewhere")
        executor.expect(1)
        executor._next_look = 0
        executor.wait(0)
        (process,) = pool.processes.values()
        assert process.wait(60) == 2
    assert "cannot read the storage of the sweep (hydra.launcher.storage): file://" in pool.output[0]


class NoCredentialsError(Exception):
    """Like the error of botocore, which is no OSError."""


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (NoCredentialsError("Unable to locate credentials"), "Unable to locate credentials"),
        (
            ConfigError("storage", "s3://bucket", "a URL", hint="Install s3fs to access S3."),
            "Install s3fs to access S3",
        ),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_a_node_reports_every_error_of_the_storage(
    monkeypatch: pytest.MonkeyPatch, error: Exception, told: str
) -> None:
    def fail(url: str) -> Storage:
        raise error

    monkeypatch.setattr(node, "Storage", fail)
    with pytest.raises(TrainyardError, match=rf"\(hydra\.launcher\.storage\): {told}\.$"):
        node._seen("s3://bucket")


def test_a_task_that_is_to_end_before_its_files_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal is not lost."""

    def work(folder: Path) -> Any:
        import time

        signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(SystemExit(143)))
        while True:  # a signal just before one long sleep would be handled after it
            time.sleep(0.05)

    with an_executor(tmp_path) as (executor, _, _):
        executor.expect(1)
        while not executor.ready:
            executor.wait(0.1)
        executor.launch(0, task(tmp_path, work), [executor.ready[0].index], Policy())
        executor.end([0], None)
        found: list[Any] = []
        while not any(type(event).__name__ == "Finished" for event in found):
            found += executor.wait(0.1)
    assert found[-1].state == "interrupted"
