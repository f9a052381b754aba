from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import pytest
from c_libraries import compiled
from executing import execute
from waiting import FOREVER, Clock, until_gone

from trainyard.errors import ConfigError, TrainyardError
from trainyard.sweep.executor.agent import ExecutorError
from trainyard.sweep.executor.slots import Slot
from trainyard.sweep.executor.task import Task

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file

CPU = [Slot(0), Slot(1)]


def run(function: Any, *arguments: Any, slots: Any = CPU, log: Any = None, **options: Any) -> Any:
    options.setdefault("preload", ())
    tasks = [Task(num, function, argument, log=log) for num, argument in enumerate(arguments or [None])]
    return execute(slots, tasks, **options)


def states(outcomes: Any) -> Any:
    return [outcome.state for outcome in outcomes]


def wait_for(path: Any) -> None:
    """In a task: until the test, or another task, has made this file."""
    while not path.exists():
        time.sleep(0.01)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives the executor a clock that stands still until something holds."""

    def give(*arguments: Any) -> None:
        clock = Clock(*arguments)
        for module in ("local", "workers"):
            monkeypatch.setattr(f"trainyard.sweep.executor.{module}.time", clock)

    return give


def nth_time(folder: Any) -> Any:
    """How often the task has been here, this time included."""
    with (folder / "times").open("a+b") as file:
        file.write(b".")
        return file.tell()


# Exceptions


def test_a_task_that_raises_fails_at_once_and_the_others_go_on(tmp_path: Path) -> None:
    def task(x: Any) -> Any:
        if x == 0:
            raise ValueError(f"x is {x}\nand that is bad")
        wait_for(tmp_path / "told")
        return x

    def note(event: Any) -> None:
        events.append(event)
        if event.kind == "failed":
            (tmp_path / "told").touch()

    events: list[Any] = []
    outcomes = run(task, 0, 1, 2, on_event=note)
    assert states(outcomes) == ["failed", "done", "done"]
    assert (outcomes[0].error, outcomes[0].attempts) == ("ValueError: x is 0", 1)
    lines = outcomes[0].traceback.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert "test_executor_failures.py" in lines[1]  # it begins in the task
    assert lines[-1] == "and that is bad"
    ends = [event for event in events if event.outcome is not None]
    assert [event.kind for event in ends] == ["failed", "ended", "ended"]
    assert ends[0].num == 0
    assert (ends[0].error, ends[0].traceback) == (outcomes[0].error, outcomes[0].traceback)


def test_exceptions_that_cannot_be_pickled_or_shown() -> None:
    def task(x: Any) -> None:
        class OddError(Exception):
            def __init__(self, a: Any, b: Any) -> None:
                self.lock = __import__("threading").Lock()

            def __str__(self) -> str:
                return {"odd": "odd message"}[x]

        raise OddError(1, 2)

    odd, unspeakable = run(task, "odd", "unspeakable")
    assert (odd.state, odd.error) == ("failed", "OddError: odd message")
    assert (unspeakable.state, unspeakable.error) == ("failed", "OddError: (its message cannot be shown)")
    assert "in task" in unspeakable.traceback


@pytest.mark.parametrize(
    ("code", "state", "error"),
    [
        (None, "done", None),
        (0, "done", None),
        (1, "failed", "SystemExit: 1"),
        ("no data", "failed", "SystemExit: no data"),
        (143, "interrupted", "SystemExit: 143"),
        (130, "interrupted", "SystemExit: 130"),
    ],
)
def test_a_task_that_exits(code: int | str | None, state: str, error: str | None) -> None:
    (outcome,) = run(sys.exit, code, retries=0)
    assert (outcome.state, outcome.error, outcome.value) == (state, error, None)


def test_a_training_that_says_that_it_was_interrupted() -> None:
    def task(status: Any) -> None:
        error = TrainyardError("interrupted at iteration 17; go on with resume=true")
        error.status = status
        raise error

    outcomes = run(task, 143, 130, 1)
    assert states(outcomes) == ["interrupted", "interrupted", "failed"]
    assert outcomes[0].error == "interrupted at iteration 17; go on with resume=true"


def test_a_task_that_ends_its_process() -> None:
    outcomes = run(os._exit, 0, 3, 143)
    assert states(outcomes) == ["lost", "lost", "interrupted"]
    assert outcomes[1].error == "its process ended with status 3 before it returned a result"


def test_a_task_that_cannot_be_pickled_fails_without_a_process() -> None:
    lock = __import__("threading").Lock()
    events: list[Any] = []
    outcomes = run(lambda _: 1, lock, 2, retries=3, on_event=events.append)
    assert states(outcomes) == ["failed", "done"]
    assert "cannot be pickled" in outcomes[0].error
    assert (outcomes[0].attempts, outcomes[0].slot) == (0, -1)
    assert [event.kind for event in events if event.num == 0] == ["failed"]


def test_a_result_that_cannot_be_pickled_fails_the_task() -> None:
    (outcome,) = run(lambda _: __import__("threading").Lock())
    assert outcome.state == "failed"
    assert "the return value of the task function cannot be pickled" in outcome.error


def test_a_result_that_cannot_be_unpickled_fails_the_task() -> None:
    class Result:
        def __reduce__(self) -> Any:
            return int, ("no number",)

    (outcome,) = run(lambda _: Result())
    assert outcome.state == "failed"
    assert "the return value of the task function cannot be unpickled: ValueError" in outcome.error


# Processes that die


def test_a_killed_worker_costs_its_one_task_an_attempt(tmp_path: Path) -> None:
    def task(x: Any) -> Any:
        if x == 1 and nth_time(tmp_path) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return os.getpid()

    events: list[Any] = []
    outcomes = run(task, 0, 1, 2, 3, retries=1, on_event=events.append)
    assert states(outcomes) == ["done"] * 4
    assert [outcome.attempts for outcome in outcomes] == [1, 2, 1, 1]
    (retried,) = [event for event in events if event.kind == "retried"]
    assert (retried.num, retried.attempt) == (1, 1)
    assert retried.error == "its process was killed by SIGKILL before it returned a result"
    assert [event.attempt for event in events if event.num == 1] == [1, 1, 2, 2]


def test_a_task_whose_attempts_are_used_up_is_lost() -> None:
    (outcome,) = run(lambda _: os.kill(os.getpid(), signal.SIGKILL), retries=2)
    assert (outcome.state, outcome.attempts) == ("lost", 3)


def test_retries_of_a_task_that_raises(tmp_path: Path) -> None:
    def task(times: Any) -> Any:
        if nth_time(tmp_path) < times:
            raise ValueError("not yet")
        return "at last"

    (outcome,) = run(task, 3, retries=2)
    assert (outcome.state, outcome.value, outcome.attempts, outcome.error) == ("done", "at last", 3, None)
    (outcome,) = run(task, 99, retries=2)
    assert (outcome.state, outcome.attempts) == ("failed", 3)


def report_file() -> Any:
    """The file, of this worker, that the executor will read."""
    (fd,) = [fd for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink() and "memfd" in str(fd.readlink())]
    return int(fd.name)


@pytest.mark.parametrize("written", [b"garbage" * 1000, b"trainyard report" + (10**6).to_bytes(8, "big") + b"half"])
def test_garbage_or_half_a_report_is_no_result(written: Any) -> None:
    def task(x: Any) -> None:
        os.write(report_file(), written)
        os._exit(0)

    assert states(run(task)) == ["lost"]


def test_garbage_before_a_report_does_no_harm() -> None:
    def task(x: Any) -> Any:
        os.write(report_file(), b"garbage" * 1000)
        return 5

    (outcome,) = run(task)
    assert (outcome.state, outcome.value) == ("done", 5)


def test_a_child_that_goes_on_as_if_it_were_the_task_does_not_report() -> None:
    def task(_: Any) -> Any:
        import atexit

        begin, go = os.pipe()
        child = os.fork()
        if child == 0:
            os.read(begin, 1)
            return "child"
        # When the task has reported.
        atexit.register(lambda: (os.write(go, b"!"), os.waitpid(child, 0)))
        return "task"

    (outcome,) = run(task)
    assert (outcome.state, outcome.value) == ("done", "task")


def test_a_crash_leaves_its_stack_in_the_log(tmp_path: Path) -> None:
    def task(_: Any) -> None:
        import ctypes

        ctypes.string_at(0)

    (outcome,) = run(task, log=tmp_path / "task.log")
    assert (outcome.state, outcome.error) == ("lost", "its process was killed by SIGSEGV before it returned a result")
    assert "Segmentation fault" in (tmp_path / "task.log").read_text()


def test_children_that_a_task_leaves_behind_are_killed() -> None:
    def task(_: Any) -> Any:
        # One holds all files of the worker, the other none.
        children = [subprocess.Popen(["sleep", str(FOREVER)]).pid, os.fork()]
        if children[1] == 0:
            time.sleep(FOREVER)
        return children

    (outcome,) = run(task)
    until_gone(*outcome.value)


def test_the_server_s_death_costs_the_tasks_at_work_an_attempt(tmp_path: Path) -> None:
    def task(x: Any) -> Any:
        if x == 1 and nth_time(tmp_path) == 1:
            child = subprocess.Popen(["sleep", str(FOREVER)])
            (tmp_path / "pids").write_text(f"{os.getpid()} {child.pid}")
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(FOREVER)
        return x

    outcomes = run(task, 0, 1, 2, retries=1, slots=[Slot(0)])
    assert [(outcome.value, outcome.attempts) for outcome in outcomes] == [(0, 1), (1, 2), (2, 1)]
    until_gone(*(tmp_path / "pids").read_text().split())


# Preload


def test_a_module_that_cannot_be_preloaded_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"preload: 'no_such_module' is invalid.*No module named 'no_such_module'"):
        run(lambda _: 1, preload=("json", "no_such_module"))


@pytest.mark.parametrize("exit_", ["os._exit(7)", "sys.exit(7)"])
def test_a_server_that_dies_while_it_starts_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exit_: str
) -> None:
    (tmp_path / "deadly.py").write_text(f"import os, sys; print('goodbye', file=sys.stderr, flush=True); {exit_}")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ExecutorError, match="ended with status 7 before it was ready: goodbye"):
        run(lambda _: 1, preload=("deadly",))


# libcuda.so.1 as far as it is asked, with the signatures of cuda.h.
CUDA_DRIVER = """
static int begun;
int cuInit(unsigned int flags) { begun = 1; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return begun ? 0 : 3; }
"""


@pytest.fixture
def touching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write the module `touching`, which calls a function of the CUDA driver when it is imported."""
    name = "libcuda.so.1"
    library = compiled(CUDA_DRIVER, tmp_path / name, f"-Wl,-soname,{name}")
    monkeypatch.syspath_prepend(str(tmp_path))

    def touching(call: str) -> None:
        code = f"import ctypes; ctypes.CDLL({str(library)!r}).{call}"
        (tmp_path / "touching.py").write_text(code)

    return touching


def test_a_module_that_initializes_cuda_is_a_config_error(touching: Any) -> None:
    """No worker could use CUDA then. `torch.cuda.is_initialized` does not know of it."""
    touching("cuInit(0)")
    with pytest.raises(ConfigError, match=r"preload: 'touching' is invalid.*Importing this module initializes CUDA"):
        run(lambda _: 1, preload=("touching",))


def test_a_module_that_loads_the_driver_alone_can_be_preloaded(touching: Any) -> None:
    touching("cuDeviceGetCount(ctypes.byref(ctypes.c_int()))")
    (outcome,) = run(lambda _: 1, preload=("touching",))
    assert outcome.value == 1


def test_torch_counts_devices_without_initializing_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the process that workers are forked from; the tasks have the environment of the caller."""
    name = "PYTORCH_NVML_BASED_CUDA_CHECK"
    monkeypatch.delenv(name, raising=False)
    (tmp_path / "asking.py").write_text(f"import os; NVML = os.environ.get({name!r})")
    monkeypatch.syspath_prepend(str(tmp_path))

    def task(_: Any) -> Any:
        import asking  # type: ignore[import-not-found]

        return asking.NVML, os.environ.get(name)

    (outcome,) = run(task, preload=("asking",))
    assert outcome.value == ("1", None)


# Timeout, fail_fast


def test_a_hung_task_gets_a_signal_and_may_clean_up(tmp_path: Path, clock: Any) -> None:
    def task(folder: Any) -> None:
        try:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
            (folder / "hangs").touch() or time.sleep(FOREVER)  # type: ignore[func-returns-value]
        finally:
            (folder / "checkpoint").touch()

    clock((tmp_path / "hangs").exists, 1.0)
    (outcome,) = run(task, tmp_path, timeout=0.3, retries=3)
    assert (outcome.state, outcome.error, outcome.attempts) == ("timeout", "took longer than 0.3 s", 1)
    assert "time.sleep(FOREVER)" in outcome.traceback
    assert (tmp_path / "checkpoint").exists()
    assert 0.3 <= outcome.seconds <= 1.1


def test_the_server_s_start_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Any) -> None:
    looks: list[Any] = []

    def starts() -> Any:
        """The server has its module when time has passed."""
        looks.append(None)
        if len(looks) == 50:
            (tmp_path / "go").touch()
        return len(looks) < 50

    (tmp_path / "slow.py").write_text(
        "import pathlib, time\nwhile not pathlib.Path(__file__).with_name('go').exists(): time.sleep(0.01)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    clock(starts)
    (outcome,) = run(lambda _: 1, preload=("slow",), timeout=0.9)
    assert (outcome.state, outcome.seconds) == ("done", 0)
    assert len(looks) > 50


def test_a_task_that_ignores_the_signal_is_killed_after_the_grace(tmp_path: Path, clock: Any) -> None:
    def task(x: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if x:
            (tmp_path / x).write_text(str(os.getpid()))
        if x == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        while x:
            pass

    def hang() -> Any:
        stopped = tmp_path / "stopped"
        if not ((tmp_path / "busy").exists() and stopped.exists() and (pid := stopped.read_text())):
            return False
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        return True

    clock(hang, 1.0)
    outcomes = run(task, "busy", "stopped", "", timeout=0.5, grace=0.2)
    assert states(outcomes) == ["timeout", "timeout", "done"]
    assert all(0.7 <= outcome.seconds <= 1.1 for outcome in outcomes[:2])


def test_what_a_task_returns_within_the_grace_counts(tmp_path: Path, clock: Any) -> None:
    def task(x: Any) -> Any:
        signal.signal(signal.SIGTERM, lambda *_: (tmp_path / "signal").touch())
        (tmp_path / "begun").touch()
        wait_for(tmp_path / "signal")
        return x

    clock((tmp_path / "begun").exists, 1.0)
    (outcome,) = run(task, 1, timeout=0.2)
    assert (outcome.state, outcome.value) == ("done", 1)
    assert outcome.seconds > 0.2


def test_fail_fast_stops_the_others(tmp_path: Path) -> None:
    def task(x: Any) -> None:
        if x == "fails":
            wait_for(tmp_path / "stubborn")
            raise ValueError("bad")
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (tmp_path / x).touch()
        time.sleep(FOREVER)

    events: list[Any] = []
    outcomes = run(task, "fails", "stubborn", "waits", fail_fast=True, grace=0.2, on_event=events.append)
    assert states(outcomes) == ["failed", "interrupted", "interrupted"]
    assert outcomes[2].error == "stopped because task 0 failed"
    assert (outcomes[2].attempts, outcomes[2].slot) == (0, -1)
    assert [(event.kind, event.num) for event in events if event.outcome] == [
        ("failed", 0),
        ("interrupted", 2),
        ("interrupted", 1),
    ]


def test_an_outcome_may_stop_the_others(tmp_path: Path) -> None:
    begun = tmp_path / "begun"

    def task(name: str) -> str:
        if name == "waits":
            begun.touch()
            time.sleep(FOREVER)
        wait_for(begun)
        return name

    outcomes = run(
        task, "ends", "waits", "waits", slots=[Slot(0), Slot(1)], ends=lambda outcome: outcome.value == "ends"
    )
    assert states(outcomes) == ["done", "interrupted", "interrupted"]


def test_fail_fast_waits_for_the_retries(tmp_path: Path) -> None:
    def task(_: Any) -> None:
        if nth_time(tmp_path) == 1:
            raise ValueError("once")

    outcomes = run(task, 0, 1, fail_fast=True, retries=1, slots=[Slot(0)])
    assert states(outcomes) == ["done", "done"]


# Out of memory


@pytest.fixture
def memory(tmp_path: Path) -> Any:
    """A task that runs out of memory where its device has another task, or always; it notes when it ran."""
    at_work, marks = tmp_path / "at_work", tmp_path / "marks"
    at_work.mkdir()
    marks.mkdir()

    def task(argument: Any) -> Any:
        name, always = argument
        import torch

        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
        mine = at_work / f"{name}.{os.getpid()}"
        mine.touch()
        try:
            if name == "small0":
                wait_for(marks / "large was out of memory")  # it is beside the large one
            elif name == "large" and not always and nth_time(marks) == 1:
                while not list(at_work.glob("small0.*")):
                    time.sleep(0.01)
            others = [path for path in at_work.iterdir() if path != mine]
            if name == "large" and (others or always):
                (marks / "large was out of memory").touch()
                raise RuntimeError("training failed") from torch.cuda.OutOfMemoryError("CUDA out of memory. Tried …")
            time.sleep(0.1)
            return sorted({path.name.partition(".")[0] for path in [*others, *at_work.iterdir()] if path != mine})
        finally:
            mine.unlink()

    return task


def test_a_task_out_of_memory_has_its_device_for_itself_next(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    arguments = [("large", False), *[(f"small{n}", False) for n in range(4)]]
    events: list[Any] = []
    slots = [Slot(0, "cuda:0"), Slot(1, "cuda:0")]
    outcomes = run(memory, *arguments, slots=slots, preload=("torch",), on_event=events.append)
    assert states(outcomes) == ["done"] * 5, outcomes
    assert [outcome.attempts for outcome in outcomes] == [1] * 5
    assert outcomes[0].value == []  # nothing was beside it
    (retried,) = [event for event in events if event.kind == "retried"]
    assert (retried.num, retried.error) == (0, "RuntimeError: training failed")


def test_a_task_out_of_memory_even_alone_fails(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    events: list[Any] = []
    (outcome,) = run(
        memory, ("large", True), slots=[Slot(0, "cuda:0")], preload=("torch",), retries=1, on_event=events.append
    )
    assert (outcome.state, outcome.attempts) == ("failed", 2)
    assert [event.kind for event in events] == ["started", "retried", "started", "retried", "started", "failed"]


def test_out_of_memory_without_a_gpu_is_a_failure_like_any_other() -> None:
    def task(_: Any) -> None:
        class OutOfMemoryError(RuntimeError):
            pass

        raise OutOfMemoryError("CUDA out of memory")

    (outcome,) = run(task)
    assert (outcome.state, outcome.attempts) == ("failed", 1)


def test_a_task_that_the_system_kills_for_want_of_memory_is_tried_again_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The count of such kills is that of a file of the test's, which the task writes before it is killed."""
    count = tmp_path / "vmstat"
    count.write_text("nr_free_pages 7\noom_kill 3\n")
    module = "from pathlib import Path\nimport trainyard.sweep.executor.out_of_memory as it\n"
    (tmp_path / "counting.py").write_text(f"{module}it.VMSTAT = Path({str(count)!r})\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def task(x: Any) -> Any:
        (tmp_path / f"running{x}").touch()
        if x == 0 and nth_time(tmp_path) == 1:
            wait_for(tmp_path / "running1")
            count.write_text("oom_kill 4\n")
            os.kill(os.getpid(), signal.SIGKILL)
        if x == 1:
            wait_for(tmp_path / "told")
        return x

    def note(event: Any) -> None:
        events.append(event)
        if event.kind == "retried":
            (tmp_path / "told").touch()

    events: list[Any] = []
    outcomes = run(task, 0, 1, preload=("counting",), on_event=note)
    assert [(outcome.state, outcome.attempts) for outcome in outcomes] == [("done", 1), ("done", 1)]
    (retried,) = [event for event in events if event.kind == "retried"]
    assert retried.error.startswith("killed by the system: out of memory (it used ")
    order = [(event.kind, event.num) for event in events]
    assert order.index(("ended", 1)) < len(order) - 1 - order[::-1].index(("started", 0)), "nothing is beside it"


def test_a_kill_by_hand_is_no_want_of_memory() -> None:
    (outcome,) = run(lambda _: os.kill(os.getpid(), signal.SIGKILL))
    assert outcome.error == "its process was killed by SIGKILL before it returned a result"
