"""Stacks before they run: their width, how they are shared out, what the plan says of them."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from trainyard.errors import ConfigError
from trainyard.sweep.entry import Entry
from trainyard.sweep.executor.task import TaskEvent, TaskOutcome
from trainyard.sweep.manifest import Manifest
from trainyard.sweep.plan import Job, Stack, SweepPlan, spans
from trainyard.sweep.progress import SweepProgress
from trainyard.sweep.stacks import StackPlanner, _by_strategy, chunks
from trainyard.sweep.sweepable import SweepableTask
from trainyard.sweep.worker_tasks import JobDone
from trainyard.track import Journal


@pytest.mark.parametrize(
    ("total", "width", "slots", "sizes"),
    [
        (256, 256, 2, [128, 128]),
        (256, 64, 2, [64] * 4),
        (3, 8, 2, [3]),
        (3, 2, 2, [1, 2]),
        (4, 8, 2, [2, 2]),
        (5, 8, 4, [2, 3]),
        (2, 8, 16, [2]),
        (10, 4, 2, [3, 3, 4]),
        (7, 8, 1, [7]),
    ],
)
def test_chunks(total: int, width: int, slots: int, sizes: Any) -> None:
    assert [len(chunk) for chunk in chunks(range(total), width, slots)] == sizes


def test_chunks_of_a_width_asked_for() -> None:
    assert [len(chunk) for chunk in chunks(range(10), 4, 16, exactly=True)] == [4, 4, 2]


@given(st.integers(2, 300), st.integers(2, 64), st.integers(1, 16), st.booleans())
def test_every_job_is_in_one_chunk(total: int, width: int, slots: int, exactly: bool) -> None:
    found = list(chunks(range(total), width, slots, exactly=exactly))
    assert [job for chunk in found for job in chunk] == list(range(total)), "in the order of their numbers"  # type: ignore[comparison-overlap]
    assert max(map(len, found)) <= width
    if not exactly and width > 2:
        assert min(map(len, found)) >= 2
    if not exactly and total >= 2 * slots:
        assert len(found) >= slots, "all slots are busy"


def test_spans() -> None:
    assert spans([3]) == "#3"
    assert spans([3, 4, 5]) == "#3-#5"
    assert spans([1, 3, 5]) == "#1, #3, #5"
    assert spans(range(0, 64, 2)) == "#0, #2, … #62"


def _application(trainer: Any = None) -> Any:
    class Application(SweepableTask):
        fuse = trainer

    return Application()


@pytest.mark.parametrize(
    ("setting", "fuse", "message"),
    [
        (0, object(), "fuse: 0 is invalid. Expected an integer of at least 1, or auto or off."),
        (-3, object(), "fuse: -3 is invalid"),
        (8, None, "fuse: 8 is invalid. Expected auto or off. This application cannot stack jobs."),
    ],
)
def test_widths_that_cannot_be(setting: int, fuse: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        StackPlanner(None, _application(fuse), setting, None)
    assert message in str(caught.value)


@pytest.mark.parametrize(("setting", "fuse"), [("off", object()), ("auto", None), (1, object())])
def test_nothing_is_stacked_where_nothing_can_be(setting: int | str, fuse: Any) -> None:
    planner = StackPlanner(None, _application(fuse), setting, SimpleNamespace(slots=[0]))
    assert not planner.active
    stacking = planner.plan([_job(0), _job(1)], {}, {})
    assert (stacking.stacks, stacking.alone) == ([], {})


def _job(num: Any, directory: Any = Path()) -> Any:
    values = {"objective": "val/loss", "loop": {"max_epochs": 10}}
    config = OmegaConf.create(values | {"hydra": {"job": {"name": "t"}}})
    return Job(num, (f"lr={num}",), config, directory / str(num), values | {"lr": num})


def _plan(count: Any, stacks: Any = (), alone: Any = None, directory: Any = Path()) -> Any:
    jobs = [_job(num, directory) for num in range(count)]
    entries = {job.num: Entry(list(job.overrides)) for job in jobs}
    stacked = [Stack(tuple(jobs[num] for num in nums), "8 times one by one") for nums in stacks]
    return SweepPlan(jobs, entries, [], ["lr"], directory, stacked, alone or {})


def test_the_plan_shows_stacks_and_reasons() -> None:
    plan = _plan(6, [range(4)], {4: "alone in model=cnn"})
    plan.entries[5].state = "failed"
    lines = str(plan).splitlines()[2:]
    assert lines == [
        "  #0-#3  a stack of 4 on one slot (8 times one by one)",
        *(f"    #{num}    lr={num}" for num in range(4)),
        "  #4    lr=4  (alone in model=cnn)",
        "  #5    lr=5  (failed)",
    ]


def test_the_plan_counts_jobs_that_do_not_run() -> None:
    plan = _plan(5)
    for num, state in enumerate(("done", "stopped", "pruned", "paused")):
        plan.entries[num].state = state
    assert str(plan).startswith("5 jobs, 1 already done, 1 stopped, 1 pruned; 2 to run (1 paused) on ")


def test_a_job_without_overrides_of_its_own_has_its_number_once(capsys: pytest.CaptureFixture[str]) -> None:
    plan = replace(_plan(1), keys=[])
    assert str(plan).splitlines()[2:] == ["  #0"]
    SweepProgress(plan, plan.jobs).paused(plan.jobs[0])
    assert capsys.readouterr().out == "paused   #0\n"


def test_a_job_that_no_process_runs_is_told_to_have_failed(capsys: pytest.CaptureFixture[str]) -> None:
    plan = _plan(1)
    outcome = TaskOutcome(0, "failed", error="the task cannot be pickled: TypeError")
    SweepProgress(plan, plan.jobs).ended(plan.jobs[0], "failed", outcome)
    assert capsys.readouterr().out == "FAILED  #0 lr=0: the task cannot be pickled: TypeError\n"


def test_a_strategy_that_is_no_option_of_its_group() -> None:
    config = OmegaConf.create({"hydra": {"runtime": {"choices": {}}}})
    job = Job(0, (), config, Path(), {"strategy": {"launcher": None}}, slots=2)
    assert _by_strategy(job) == "the strategy trains on several devices"
    assert _by_strategy(replace(job, values={})) == "the job trains on several devices"


def test_a_job_that_continues_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    plan = _plan(3)
    progress = SweepProgress(plan, plan.jobs)
    for job, how in zip(plan.jobs, ("promoted", "resumed", ""), strict=True):
        progress.promoted(job, how)
    assert capsys.readouterr().out == "promoted #0 lr=0\nresumed  #1 lr=1\n"


def test_commands_to_jobs_that_do_not_run_are_counted() -> None:
    plan = _plan(3)
    progress = SweepProgress(plan, plan.jobs)
    first, second, _ = plan.jobs
    progress.held(first)
    progress.held(second)
    assert str(progress.table().title) == "0/3 jobs, 2 paused"
    progress.promoted(first, "")
    progress.stopped(second)
    assert str(progress.table().title) == "1/3 jobs"


def test_a_stack_with_one_job_is_not_divided(capsys: pytest.CaptureFixture[str]) -> None:
    plan = _plan(2)
    SweepProgress(plan, plan.jobs).stack_split(Stack((plan.jobs[1],)), "its last batch is smaller", None)
    assert capsys.readouterr().out == "alone    #1 continues as a single job: its last batch is smaller\n"


def test_a_reason_that_many_share_is_given_once() -> None:
    plan = _plan(60, [], dict.fromkeys(range(59), "one by one is faster") | {59: "alone in lr=59"})
    lines = str(plan).splitlines()[2:]
    assert lines[0] == "  #0-#58  one by one: one by one is faster"
    assert lines[1] == "    #0    lr=0"
    assert lines[-2:] == ["    … and 49 more", "  #59   lr=59  (alone in lr=59)"]


def test_a_plan_of_many_jobs_is_short() -> None:
    plan = _plan(256, [range(128), range(128, 256)])
    assert len(str(plan).splitlines()) == 2 + 2 * (1 + 10 + 1)
    assert "    … and 118 more" in str(plan)
    assert len(plan.text().splitlines()) == 2 + 2 + 256, "all of them in the artifact"
    assert len(str(_plan(300, [range(n, n + 2) for n in range(0, 200, 2)])).splitlines()) < 90


def test_a_row_for_each_stack(tmp_path: Path) -> None:
    plan = _plan(257, [range(128), range(128, 256)], directory=tmp_path)
    progress = SweepProgress(plan, plan.jobs)
    for num in range(257):
        (tmp_path / str(num)).mkdir()
        with Journal(tmp_path / str(num)) as journal:
            journal.metrics(3, {"val/loss": 1 + num / 1000}, epoch=2)
    for number, stack in enumerate(plan.stacks, 1):
        progress.stack_started(TaskEvent("started", -number, number - 1, 1, 0.0), stack)
    progress.event(TaskEvent("started", 256, 2, 1, 0.0))
    for _ in range(10):
        table = progress.table()
    columns = {column.header: [str(cell) for cell in column.cells] for column in table.columns}
    assert columns["job"] == ["#0-#127", "#128-#255", "#256"]
    assert columns[""] == ["a stack of 128", "a stack of 128", "lr=256"]
    assert columns["epoch"] == ["2", "2", "2"]
    assert columns["latest"] == ["val/loss 1.0000 to 1.1270", "val/loss 1.1280 to 1.2550", "val/loss 1.2560"]
    progress.left(-1)
    progress.ended(plan.jobs[0], "done", TaskOutcome(0, "done", seconds=1.0, attempts=1))
    assert progress.table().row_count == 2
    assert str(progress.table().title).startswith("1/257 jobs, ")


def test_the_title_counts_paused_and_pruned_jobs_and_has_the_best_result(tmp_path: Path) -> None:
    plan = _plan(8, directory=tmp_path)
    progress = SweepProgress(plan, plan.jobs)
    jobs = plan.jobs

    def title() -> str:
        return str(progress.table().title)

    assert title() == "0/8 jobs"
    for job in jobs[:3]:
        progress.paused(job)
    assert title() == "0/8 jobs, 3 paused"
    progress.promoted(jobs[0])
    progress.pruned(jobs[1], 1, 0.5)
    for num, value in ((3, 0.75), (4, 0.25), (5, math.nan), (6, 0.5)):
        outcome = TaskOutcome(num, "done", JobDone(value), seconds=0.0, attempts=1)
        progress.ended(jobs[num], "done", outcome)
    assert title().split(", ")[-3:] == ["1 paused", "1 pruned", "best 0.2500"]


def test_the_memory_of_this_machine_is_named_only_for_jobs_that_run_on_it(capsys: pytest.CaptureFixture[str]) -> None:
    plan = _plan(2)
    progress = SweepProgress(plan, plan.jobs)
    used = "memory   a process used 3.0 GiB when the available memory was exhausted: "
    progress.out_of_host_memory(3 * 2**30, 2, here=True)
    assert capsys.readouterr().out == f"{used}set hydra.launcher.max_jobs=1 to run fewer jobs at a time.\n"
    progress.out_of_host_memory(3 * 2**30, 8, here=False)
    told = capsys.readouterr().out
    assert told.startswith(f"{used}reduce the memory of the job, or request more")
    assert "max_jobs" not in told


def test_the_time_that_is_left_counts_slots_and_stacks(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Of 12 jobs, 8 train in two stacks, and the others wait: each takes a quarter of its stack's 400 seconds."""
    plan = _plan(12, [range(4), range(4, 8), range(8, 12)], directory=tmp_path)
    progress = SweepProgress(plan, plan.jobs)
    for number, stack in enumerate(plan.stacks[:2], 1):
        progress.stack_started(TaskEvent("started", -number, number - 1, 1, 0.0), stack)
    progress.left(-1)
    progress.ended(plan.jobs[0], "done", TaskOutcome(0, "done", seconds=400.0, attempts=1), width=4)
    assert (
        "left     about 7 min 30 s, estimated from this job"
    ) in capsys.readouterr().out  # (7 waiting + 4 / 2) * 100 / 2
    progress.ended(plan.jobs[1], "done", TaskOutcome(1, "done", seconds=400.0, attempts=1), width=4)
    assert "left" not in capsys.readouterr().out


def test_the_manifest_knows_what_a_job_of_a_stack_cost(tmp_path: Path) -> None:
    manifest = Manifest.open(tmp_path)
    manifest.define(0, [])
    assert manifest.entries[0].cost is None
    manifest.note(0, "done", seconds=12.0, width=4)
    assert Manifest.open(tmp_path).entries[0].cost == 3.0
    manifest.note(0, "done", seconds=12.0)
    assert Manifest.open(tmp_path).entries[0].cost == 12.0
