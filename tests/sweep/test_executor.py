from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import pytest
from executing import execute
from waiting import FOREVER

from trainyard.errors import ConfigError
from trainyard.sweep.executor import LocalExecutor, Policy
from trainyard.sweep.executor.slots import Slot
from trainyard.sweep.executor.task import Task
from trainyard.sweep.loop import TICK

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file

CPU = [Slot(0), Slot(1)]


@pytest.fixture(scope="module")
def with_torch() -> Iterator[Any]:
    with LocalExecutor([Slot(0, threads=2)]) as executor:
        yield executor


def run(function: Any, *arguments: Any, slots: Any = CPU, log: Any = None, **options: Any) -> Any:
    options.setdefault("preload", ())
    tasks = [Task(num, function, argument, log=log) for num, argument in enumerate(arguments or [None])]
    return execute(slots, tasks, **options)


def value(function: Any, argument: Any = None, **options: Any) -> Any:
    (outcome,) = run(function, argument, **options)
    assert outcome.state == "done", outcome.traceback or outcome.error
    return outcome.value


# Values


def test_outcomes_come_in_the_order_of_the_tasks() -> None:
    outcomes = run(lambda x: x * x, *range(6))
    assert [(outcome.num, outcome.value) for outcome in outcomes] == [(n, n * n) for n in range(6)]
    for outcome in outcomes:
        assert (outcome.state, outcome.error, outcome.traceback, outcome.attempts) == ("done", None, None, 1)
        assert outcome.slot in (0, 1)
        assert outcome.seconds > 0


def test_no_tasks_no_outcomes() -> None:
    assert execute(CPU, [], preload=()) == []


def test_large_arguments_and_results_travel() -> None:
    data = os.urandom(1 << 20) * 40
    assert value(lambda x: x[::-1], data) == data[::-1]


def test_classes_of_the_caller_come_back_as_what_they_are() -> None:
    class Local:
        def __init__(self, x: Any) -> None:
            self.x = x

    result = value(lambda x: Local(x), 3)
    assert type(result) is Local
    assert result.x == 3


def test_each_task_has_a_process_of_its_own_that_leads_its_group() -> None:
    outcomes = execute([Slot(0)], [Task(n, lambda _: (os.getpid(), os.getpgid(0))) for n in range(4)], preload=())
    pids = [outcome.value[0] for outcome in outcomes]
    assert len(set(pids)) == 4
    assert pids == [outcome.value[1] for outcome in outcomes]
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_it_runs_again_and_keeps_its_server_where_it_was_started() -> None:
    with LocalExecutor(CPU, preload=()) as executor:
        servers = {execute(executor, [Task(0, lambda _: os.getppid())])[0].value for _ in range(3)}
        assert len(servers) == 1
    assert not Path(f"/proc/{servers.pop()}").exists()
    assert execute(executor, [Task(0, lambda _: 1)])[0].value == 1


def test_it_runs_in_a_thread() -> None:
    results = []
    thread = threading.Thread(target=lambda: results.append(value(lambda x: x, 5)))
    thread.start()
    thread.join()
    assert results == [5]


def test_what_a_task_leaves_for_its_end_is_done(tmp_path: Path) -> None:
    def task(folder: Any) -> None:
        import atexit
        import tempfile
        import threading

        atexit.register((folder / "atexit").touch)
        threading.Thread(target=lambda: (time.sleep(0.05), (folder / "thread").touch())).start()  # type: ignore[func-returns-value]
        sys.kept = tempfile.TemporaryDirectory(dir=folder)  # type: ignore[attr-defined]

    value(task, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["atexit", "thread"]


# Where a task runs


def test_a_task_finds_the_folder_paths_arguments_and_environment_of_its_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = LocalExecutor(CPU, preload=())
    executor.start()  # what changes from here on is seen all the same
    (tmp_path / "only_here.py").write_text("answer = 42")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("ONLY_HERE", "yes")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "a=1,2"])

    def task(_: Any) -> Any:
        import only_here

        return str(Path.cwd()), sys.argv, os.environ["ONLY_HERE"], "HOME" in os.environ, only_here.answer

    (outcome,) = execute(executor, [Task(0, task)])
    executor.close()
    assert outcome.value == (str(tmp_path), ["train.py", "-m", "a=1,2"], "yes", False, 42), outcome.traceback


def test_a_slot_is_set_before_the_task_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-first,GPU-second")
    core = min(os.sched_getaffinity(0))
    names = "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS"

    def task(_: Any) -> Any:
        return [os.environ[name] for name in names], os.sched_getaffinity(0)

    assert value(task, slots=[Slot(0, "cuda:1", (core,), 3)]) == (["GPU-second", "3", "3"], {core})
    assert value(task, slots=[Slot(0, "cpu", None, 2)]) == (["", "2", "2"], os.sched_getaffinity(0))


def test_torch_is_there_untouched_with_the_threads_of_the_slot() -> None:
    def task(_: Any) -> Any:
        assert "torch" in sys.modules
        import torch

        return torch.get_num_threads(), torch.cuda.is_initialized(), torch.multiprocessing.current_process().name

    outcomes = run(task, *range(6), slots=[Slot(0, threads=1), Slot(1, threads=2)], preload=("torch",))
    assert {outcome.slot for outcome in outcomes} == {0, 1}
    for outcome in outcomes:
        assert outcome.value == (outcome.slot + 1, False, "MainProcess")


def test_a_task_can_train_with_threads_and_data_workers(with_torch: Any) -> None:
    def task(_: Any) -> Any:
        import torch
        from torch.utils.data import DataLoader

        weight = torch.zeros(300, requires_grad=True)
        for batch in DataLoader(torch.ones(600, 300), batch_size=300, num_workers=2):
            (batch @ weight - 1).square().mean().backward()
        return weight.grad

    (outcome,) = execute(with_torch, [Task(0, task)])
    assert outcome.state == "done", outcome.traceback
    assert outcome.value.tolist() == pytest.approx([-4.0] * 300)


def test_each_task_draws_its_own_random_numbers() -> None:
    def task(_: Any) -> Any:
        import random

        import numpy as np

        return random.random(), np.random.random()

    first, second = (outcome.value for outcome in run(task, 0, 1, preload=("numpy.random",)))
    assert first[0] != second[0]
    assert first[1] != second[1]


@pytest.mark.gpu
def test_a_task_has_one_gpu_and_the_caller_none() -> None:
    import torch

    def task(_: Any) -> Any:
        import torch

        return torch.cuda.device_count(), float(torch.ones(3, device="cuda").sum())

    initialized = torch.cuda.is_initialized()
    assert value(task, slots=[Slot(0, "cuda:0")], preload=("torch",)) == (1, 3.0)
    assert torch.cuda.is_initialized() == initialized


@pytest.mark.gpu
def test_a_preloaded_module_may_ask_whether_there_is_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "asking.py").write_text("import torch; CUDA = torch.cuda.is_available()")
    monkeypatch.syspath_prepend(str(tmp_path))

    def task(_: Any) -> Any:
        import asking  # type: ignore[import-not-found]
        import torch

        return asking.CUDA, float(torch.ones(3, device="cuda").sum())

    assert value(task, slots=[Slot(0, "cuda:0")], preload=("asking",)) == (True, 3.0)


def test_what_a_task_prints_goes_into_its_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def task(x: Any) -> None:
        print("out", x)
        print("err", x, file=sys.stderr)
        os.system("echo child")

    log = tmp_path / "logs" / "task.log"
    run(task, 1, slots=[Slot(0)], log=log)
    run(task, 2, slots=[Slot(0)], log=log)
    run(task, 3)
    assert log.read_text().split("\n") == ["out 1", "err 1", "child", "out 2", "err 2", "child", ""]
    assert capfd.readouterr() == ("", "")


def test_a_log_that_cannot_be_written_fails_the_task(tmp_path: Path) -> None:
    (outcome,) = run(lambda _: 1, log=tmp_path)
    assert outcome.state == "failed"
    assert "IsADirectoryError" in outcome.error


def test_a_script_is_not_run_again_and_its_classes_can_be_pickled(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
            import dataclasses, pickle, sys
            print("script runs")
            from trainyard.sweep.executor import LocalExecutor
            from trainyard.sweep.executor.slots import Slot
            from trainyard.sweep.executor.task import Task
            from trainyard.sweep.run_tasks import run_tasks

            @dataclasses.dataclass
            class Result:
                x: int

            def task(x):
                return pickle.dumps(Result(x)), Result(x)

            if __name__ == "__main__":
                (outcome,) = run_tasks(LocalExecutor([Slot(0)], preload=()), [Task(0, task, 7)]).outcomes
                assert outcome.state == "done", outcome.traceback
                pickled, result = outcome.value
                assert pickle.loads(pickled) == result == Result(7)
        """)
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, str(script)], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout == "script runs\n"


# The order of tasks


def test_the_longest_task_is_first_and_those_of_unknown_length_before_it() -> None:
    seconds = [1.0, None, 5.0, 3.0, None]
    begun = []
    tasks = [Task(num, lambda _: None, None, each) for num, each in enumerate(seconds)]
    execute([Slot(0)], tasks, preload=(), on_event=lambda event: begun.append((event.kind, event.num)))
    assert [num for kind, num in begun if kind == "started"] == [1, 4, 2, 3, 0]


def test_tasks_of_several_slots_never_share_one() -> None:
    slots = [Slot(0, cpus=(0,)), Slot(1, cpus=(0,))]
    events: list[Any] = []
    tasks = [Task(num, lambda _: os.environ["OMP_NUM_THREADS"], slots=1 + num % 2) for num in range(4)]
    assert [outcome.value for outcome in execute(slots, tasks, preload=(), on_event=events.append)] == ["1"] * 4
    free = 2
    for event in events:
        free += tasks[event.num].slots * (1 if event.kind == "ended" else -1)
        assert free >= 0
    with pytest.raises(ConfigError, match="tasks of at most 2 slots"):
        execute(slots, [Task(0, print, slots=3)], preload=())


# What is told


def test_events_tell_what_happens_in_order() -> None:
    events: list[Any] = []
    begin = time.time()
    (outcome,) = run(lambda x: os.getpid(), on_event=events.append)
    assert [event.kind for event in events] == ["started", "ended"]
    assert {(event.num, event.attempt, event.slot, event.pid) for event in events} == {(0, 1, 0, outcome.value)}
    assert [event.outcome for event in events] == [None, outcome]
    assert begin <= events[0].time <= events[1].time <= time.time()


def test_ticks_come_while_tasks_run(tmp_path: Path) -> None:
    def task(_: Any) -> None:
        while not (tmp_path / "enough").exists():
            time.sleep(0.01)

    def tick() -> None:
        ticks.append(time.monotonic())
        if len(ticks) == 4:
            (tmp_path / "enough").touch()

    ticks: list[Any] = []
    begin = time.monotonic()
    run(task, on_tick=tick)
    assert len(ticks) >= 4
    assert (len(ticks) - 1) * TICK <= time.monotonic() - begin, "no more often than that"


def test_an_error_in_a_callback_ends_the_run_and_its_tasks() -> None:
    def callback(event: Any) -> None:
        pids.append(event.pid)
        raise RuntimeError("broken table")

    pids: list[Any] = []
    with pytest.raises(RuntimeError, match="broken table"):
        run(lambda _: time.sleep(FOREVER), on_event=callback)
    assert not Path(f"/proc/{pids[0]}").exists()


# What is refused


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("slots", {"slots": []}),
        ("slots", {"slots": [Slot(0), Slot(0)]}),
        ("slots", {"slots": [Slot(0, "gpu")]}),
    ],
)
def test_wrong_values_are_config_errors(key: str, options: Any) -> None:
    with pytest.raises(ConfigError, match=key):
        LocalExecutor(**{"slots": CPU, **options})


@pytest.mark.parametrize(("key", "value"), [("retries", -1), ("timeout", 0), ("grace", -1), ("fail_fast", 3)])
def test_wrong_policies_are_config_errors(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=key):
        Policy(**{key: value})


def test_two_tasks_with_one_number_are_a_config_error() -> None:
    with pytest.raises(ConfigError, match="tasks"):
        execute(CPU, [Task(1, print), Task(1, print)], preload=())


# The cost


def test_a_task_costs_a_fork_and_no_import(with_torch: Any) -> None:
    def task(_: Any) -> Any:
        return os.getppid(), "torch" in sys.modules

    outcomes = execute(with_torch, [Task(num, task) for num in range(5)])
    assert len({outcome.value for outcome in outcomes}) == 1, "one process has them all for its children"
    assert outcomes[0].value[1]


def test_the_server_starts_while_its_owner_does_other_things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow.py").write_text(
        "import pathlib, time\nwhile not pathlib.Path(__file__).with_name('go').exists(): time.sleep(0.01)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with LocalExecutor(CPU, preload=("slow",)) as executor:
        (tmp_path / "go").touch()  # its start has not waited for it
        (outcome,) = execute(executor, [Task(0, lambda _: "slow" in sys.modules)])
    assert outcome.value
