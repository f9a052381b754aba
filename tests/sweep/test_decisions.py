"""Decisions of a sweep: recorded exactly, read back, followed where they can be."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from trainyard.sweep.decisions import PROMISE, Decision, KnownFit, room, tasks
from trainyard.sweep.executor.slots import Slot
from trainyard.sweep.executor.worker import Place, worker_setting
from trainyard.sweep.manifest import FILE, Manifest
from trainyard.sweep.plan import Job, Stack
from trainyard.sweep.stacks import Stacking, StackPlanner, decide
from trainyard.sweep.sweepable import SweepableTask
from trainyard.track.facts import cpu_model

SLOT = Slot(0, "cpu", (0, 1), 2)


def decided(*nums: int, **others: Any) -> Decision:
    return Decision(**{"nums": nums, "device": "cpu", "threads": 2, "cpu": cpu_model(), **others})


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    manifest = Manifest(tmp_path / FILE)
    for num in range(4):
        manifest.define(num, [f"seed={num}"], f"sub/{num}")
    return manifest


def test_records_are_exact_and_are_read_back(manifest: Manifest, tmp_path: Path) -> None:
    manifest.measured({"00ff": KnownFit(2, "", "1.9 times as fast", 4)})
    manifest.decide([decided(2, 0, note="1.9 times as fast"), decided(1, 3, device="cuda", threads=4, cpu="a CPU")])
    manifest.measured({"00ff": KnownFit(2, "", "1.9 times as fast", 4)})  # it is recorded already
    manifest.decide([decided(3, slots=2)])
    manifest.decide([])
    records = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    for record in records:
        record.pop("time", None)
    common = {"threads": 2, "slots": 1, "cpu": cpu_model(), "note": ""}
    assert records == [
        *({"kind": "job", "num": num, "overrides": [f"seed={num}"], "subdir": f"sub/{num}"} for num in range(4)),
        {
            "kind": "fit",
            "key": "00ff",
            "width": 2,
            "reason": "",
            "note": "1.9 times as fast",
            "tried": 4,
            "seconds": None,
        },
        {
            "kind": "decisions",
            "tasks": [
                {**common, "nums": [2, 0], "device": "cpu", "note": "1.9 times as fast"},
                {**common, "nums": [1, 3], "device": "cuda", "threads": 4, "cpu": "a CPU"},
            ],
        },
        {"kind": "decisions", "tasks": [{**common, "nums": [3], "device": "cpu", "slots": 2}]},
    ]
    again = Manifest.open(tmp_path)
    assert again == manifest
    assert again.decisions == {
        0: decided(2, 0, note="1.9 times as fast"),
        1: decided(1, 3, device="cuda", threads=4, cpu="a CPU"),
        2: decided(2, 0, note="1.9 times as fast"),
        3: decided(3, slots=2),
    }
    assert again.fits == {"00ff": KnownFit(2, "", "1.9 times as fast", 4)}
    assert [entry.subdir for entry in again.entries.values()] == [f"sub/{num}" for num in range(4)]


@settings(max_examples=30)
@given(st.lists(st.permutations(range(4)), max_size=3), st.floats(0, 1))
def test_decisions_of_a_file_cut_off_at_any_byte_are_whole_or_not_there(
    tmp_path_factory: pytest.TempPathFactory, history: list[list[int]], share: float
) -> None:
    directory = tmp_path_factory.mktemp("sweep")
    manifest = Manifest(directory / FILE)
    for num in range(4):
        manifest.define(num, [])
    states = [manifest.decisions]
    for nums in history:
        manifest.decide([decided(*nums[:2]), decided(*nums[2:])])
        states.append(manifest.decisions)
    content = (directory / FILE).read_bytes()
    jobs = len(b"".join(content.splitlines(keepends=True)[:4]))
    (directory / FILE).write_bytes(content[: jobs + int((len(content) - jobs) * share)])
    assert Manifest.open(directory).decisions in states


def test_a_manifest_written_before_has_no_decisions(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"kind": "job", "num": 0, "overrides": ["seed=0"]}\n')
    manifest = Manifest.open(tmp_path)
    assert (manifest.decisions, manifest.fits, manifest.entries[0].subdir) == ({}, {}, None)
    manifest.define(0, ["seed=0"], "elsewhere")
    assert Manifest.open(tmp_path).entries[0].subdir is None


@settings(max_examples=60)
@given(
    st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=4, unique=True), max_size=6), st.sets(st.integers(0, 7))
)
def test_each_job_that_is_left_is_in_the_task_of_its_last_decision(history: list[list[int]], left: set[int]) -> None:
    recorded = {num: decided(*nums, note=str(number)) for number, nums in enumerate(history) for num in nums}
    found = tasks(left, recorded)
    assert sorted(num for nums in found for num in nums) == sorted(left & recorded.keys())
    for nums in found:
        (decision,) = {recorded[num] for num in nums}
        places = [decision.nums.index(num) for num in nums]
        assert places == sorted(places), "in the order of lanes"
    assert len({recorded[nums[0]] for nums in found}) == len(found), "one task for each decision"


@given(st.integers(1, 8), st.integers(1, 8), st.sampled_from(["cpu", "cuda"]), st.sampled_from(["", "other"]))
def test_a_decision_is_followed_as_far_as_it_can_be(threads: int, cores: int, device: str, cpu: str) -> None:
    old = decided(0, 1, threads=threads, device=device, note="why", **({"cpu": cpu} if cpu else {}))
    found, why = old.followed(decided(0, 1, threads=1), cores)
    assert (found.threads, found.device, found.cpu) == (min(threads, cores), "cpu", cpu_model())
    assert (found.nums, found.note) == ((0, 1), "why")
    assert (why == "") == (found == old)
    assert (f"the number of threads was {threads}, but is {cores} here" in why) == (threads > cores)
    assert ("the device was cuda, but is cpu here" in why) == (device == "cuda")
    assert ("the CPU was other, but is " in why) == bool(cpu)


def test_the_room_of_a_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)))
    assert room(SLOT) == 2
    assert room(Slot(0, "cuda:0", None, 3)) == 6


def test_a_task_has_the_recorded_threads() -> None:
    place = Place("/", [], [])
    own = worker_setting([SLOT], 1, None, place)
    assert (own.threads, own.environ["OMP_NUM_THREADS"], own.cpus) == (1, "1", (0, 1))
    assert worker_setting([SLOT], None, None, place).threads == 2


class Trainer:
    ALLOWED, NOT_COMPARED, PRELOAD = ("lr",), (), ()
    FIXED_WITH: ClassVar[dict[str, str]] = {}

    @staticmethod
    def widest(device: str | None) -> int:
        return 64


class Application(SweepableTask):
    fuse: Any = Trainer()


def job(num: int, **values: Any) -> Job:
    hydra = {
        "job": {"chdir": False, "env_set": {}, "name": "t"}, "job_logging": {}, "verbose": False,
        "output_subdir": ".hydra", "runtime": {"choices": {}},
    }  # fmt: skip
    own = {"lr": num, **values}
    return Job(num, (f"lr={num}",), OmegaConf.create({**own, "hydra": hydra}), Path(str(num)), own)


def planner(setting: Any = "off") -> StackPlanner:
    return StackPlanner(None, Application(), setting, SimpleNamespace(slots=[SLOT]))


def test_recorded_stacks_are_followed_whatever_the_settings_are() -> None:
    jobs = [job(num) for num in range(6)]
    recorded = {num: it for it in (decided(4, 0, 2, note="8 times"), decided(5, 3)) for num in it.nums}
    recorded[1] = decided(1, note="left over")
    left = [each for each in jobs if each.num != 0]  # it is done
    stacking = planner().plan(left, recorded, {})
    assert [([each.num for each in stack.jobs], stack.note) for stack in stacking.stacks] == [
        ([4, 2], "8 times, as recorded"), ([5, 3], "as recorded"),
    ]  # fmt: skip
    assert stacking.alone == {1: "left over"}
    new, lines = decide(left, stacking, recorded, SLOT)
    assert new == [decided(4, 2, note="8 times")], "what is recorded already is not recorded again"
    assert lines == []


def test_jobs_that_can_no_longer_be_a_stack_are_told() -> None:
    jobs = [job(0, model="mlp"), job(1, model="cnn"), job(2)]
    recorded = {0: decided(0, 1), 1: decided(0, 1), 2: decided(2, threads=9)}
    stacking = planner().plan(jobs, recorded, {})
    assert (stacking.stacks, stacking.followed) == ([], {2})
    new, lines = decide(jobs, stacking, recorded, SLOT)
    assert new == [decided(0), decided(1), decided(2)]
    assert lines == [
        f"#0-#1 cannot train as recorded: the jobs can no longer be one stack ({PROMISE}).",
        f"#2 cannot train as recorded: the number of threads was 9, but is 2 here ({PROMISE}).",
    ]


def test_recorded_fits_are_not_measured_again() -> None:
    jobs = [job(num) for num in range(4)]
    measuring = planner("auto")
    (probe,) = measuring.probes(jobs, {}, {})
    assert probe.jobs == jobs
    alone = measuring.plan(jobs, {}, {}).alone
    assert alone == dict.fromkeys(range(4), "the best stack width has not been measured")
    key = probe.key
    fits = {key: KnownFit(2, "", "twice", 4)}
    again = planner("auto")
    assert again.probes(jobs, {}, fits) == []
    stacking = again.plan(jobs, {}, fits)
    assert [[each.num for each in stack.jobs] for stack in stacking.stacks] == [[0, 1], [2, 3]]
    assert again.fits == fits
    assert planner(4).fits == {}, "a width that was given is not measured"
    assert decide(jobs, stacking, {}, SLOT)[0] == [decided(0, 1, note="twice"), decided(2, 3, note="twice")]


def test_a_plan_without_stacks_is_decided_too() -> None:
    jobs = [job(0), job(1)]
    new, lines = decide(jobs, Stacking([], {0: "the only job with lr=0"}), {}, Slot(0, "cuda:0", None, 3))
    assert new == [
        decided(0, device="cuda", threads=3, note="the only job with lr=0"),
        decided(1, device="cuda", threads=3),
    ]
    assert lines == []
    stacking = Stacking([Stack((jobs[1], jobs[0]))], {})
    assert decide(jobs, stacking, {}, SLOT)[0] == [decided(1, 0)]


def test_the_promise_is_the_same_everywhere() -> None:
    root = Path(__file__).parents[2]
    pages = [
        root / "README.md",
        *(root / "docs" / name for name in ("sweeps.md", "fused.md", "resume.md", "glossary.md")),
    ]
    sources = [root / "src/trainyard/sweep" / name for name in ("decisions.py", "manifest.py", "continuing.py")]
    for file in (*pages, *sources):
        assert PROMISE in " ".join(file.read_text().split()), file
