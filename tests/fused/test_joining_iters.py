"""Lanes of loops by iterations: members join, leave and go on at multiples of `val_interval`, within epochs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from interrupting import InterruptAt
from lane_jobs import MODELS, OPTIMS, SCHEDULES, Config, Points, Poison, config, follows, solo
from recorded_graph import RecordedGraph
from same_run import alike

from trainyard.errors import PlacesDiffer, Unfusable
from trainyard.fused.feed import LaneQueue
from trainyard.fused.optim.kernel import KernelOptimizer
from trainyard.fused.runner import FusedRunner
from trainyard.hooks import Hook
from trainyard.step.cuda_graph.captured_step import WARM_UP, CapturedStep

BATCHES = 4
"""In an epoch of the data, all of one size."""
INTERVAL = 3


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def job(seed: int, iterations: int, folder: Path | None = None, *, interval: int = INTERVAL, **more: Any) -> Config:
    loop = {"_target_": "trainyard.runner.IterBasedTrainLoop", "max_iters": iterations, "val_interval": interval}
    data = {"_target_": Points, "samples": 6 * BATCHES}
    return config(seed, 1, folder, loop=loop, **({"data": data, "resume": False} | more))


class Joins(Hook):
    """Notes when which members join, by the stack's count of iterations."""

    stackable = own_places = True

    def __init__(self) -> None:
        self.seen: list[tuple[int, list[int]]] = []

    def after_join(self, runner: Any, joined: list[int]) -> None:
        self.seen.append((runner.iter, [runner.members[k].seed for k in joined]))


class CopyAfterVal(Hook):
    """Lets the last lane go on as the first, after a validation of the stack."""

    stackable = own_places = True

    def __init__(self, at: int | None) -> None:
        self.at = at
        self.overwritten: set[int] = set()

    def after_val(self, runner: Any) -> None:
        one, other = runner.members[0], runner.members[-1]
        ends = any(member.leaves or member.at_end for member in (one, other))
        if runner.iter == self.at and one is not other and not ends:
            runner.occupancy.copy(0, len(runner.members) - 1)
            self.overwritten.add(other.seed)


def fed(jobs: list[Config], width: int, *hooks: Hook) -> tuple[FusedRunner, LaneQueue]:
    queue = LaneQueue(jobs[width:])
    fused = FusedRunner(jobs[:width], feed=queue)
    fused.added_hooks = {type(hook).__name__: hook for hook in hooks}
    return fused, queue


@pytest.mark.parametrize("by", ["iter", "epoch"])
def test_members_join_and_leave_at_multiples_of_the_interval(tmp_path: Path, by: str) -> None:
    """Each is validated, saved and recorded where its single run is, wherever its epochs end."""
    lengths = (9, 3, 7, 6, 3)

    def own(seed: int, folder: str) -> Config:
        made = job(seed, lengths[seed], tmp_path / folder)
        checkpoint = {"_target_": "trainyard.hooks.Checkpoint", "interval": 2 if by == "iter" else 1, "by": by}
        return made | {"hook": made["hook"] | {"checkpoint": checkpoint}}

    joins = Joins()
    fused, queue = fed([own(seed, "fused") for seed in range(5)], 2, joins)
    fused.train()
    assert not queue.refusals
    assert joins.seen == [(3, [2]), (9, [3]), (12, [4])]
    begun = {span.member.seed: (span.epoch, span.iter) for span in reversed(queue.spans)}
    assert begun == dict.fromkeys(range(5), (0, 0))
    for seed in range(5):
        follows(fused.all_members[seed], solo(own(seed, "solo")))
        alike(tmp_path / "fused" / str(seed), tmp_path / "solo" / str(seed))


@dataclass(frozen=True)
class Case:
    """What the members train, and what befalls them.

    Attributes:
        lengths: of the members' trainings, in iterations.
        stopped: by seed, the iteration at which a member was interrupted before, alone; it joins with its checkpoint.
        poisoned: by seed, the iteration after which a member becomes NaN.
        copied: the stack's iteration after whose validation the last lane goes on as the first.
        limit: batches of an epoch that are read; None for all.
    """

    optim: str = "sgd"
    schedule: str = "constant"
    model: str = "mlp"
    lengths: tuple[int, ...] = (9, 4, 7)
    interval: int = INTERVAL
    stopped: Mapping[int, int] = field(default_factory=dict)
    poisoned: Mapping[int, int] = field(default_factory=dict)
    clip: float | None = None
    width: int = 2
    copied: int | None = None
    limit: int | None = None

    def job(self, seed: int, folder: Path | None = None) -> Config:
        made = job(seed, self.lengths[seed], folder, interval=self.interval, model=MODELS[self.model])
        made |= {"clip_grad_norm": self.clip, "schedule": SCHEDULES[self.schedule]}
        optim = OPTIMS[self.optim]
        made["optim"] = optim | {"_partial_": True, "lr": optim["lr"] * (1 + seed / 2)}
        made["hook"] = made["hook"] | {"poison": {"_target_": Poison, "at": dict(self.poisoned)}}
        return made | ({"limit": {"train_batches": self.limit}} if self.limit else {})


@st.composite
def cases(draw: st.DrawFn) -> Case:
    schedule = draw(st.sampled_from([each for each in SCHEDULES if each != "by epoch"]))
    lengths = draw(st.lists(st.integers(2, 14), min_size=3, max_size=5).map(tuple))
    interval = draw(st.integers(1, 5))
    seeds = st.integers(0, len(lengths) - 1)
    stopped = draw(st.dictionaries(seeds, st.integers(1, 13), max_size=2))
    return Case(
        draw(st.sampled_from(list(OPTIMS))),
        schedule,
        draw(st.sampled_from(list(MODELS))),
        lengths,
        interval,
        # One that is interrupted before it is validated trains alone until then.
        {seed: at for seed, at in stopped.items() if at < lengths[seed] and at % interval},
        draw(st.dictionaries(seeds, st.integers(1, 12), max_size=2)),
        draw(st.sampled_from([None, 0.5])),
        draw(st.integers(2, len(lengths))),
        draw(st.one_of(st.none(), st.integers(1, 10))),
        draw(st.sampled_from([None, 3])),
    )


@settings(max_examples=12, derandomize=True, deadline=None)
@given(case=cases())
@example(case=Case(stopped={0: 5, 2: 4}))  # two at different batches of their epochs, one of them at the end
@example(case=Case("adam", "onecycle", "batch norm", (8, 4, 12, 4), 4, {2: 6}, {1: 3}, 0.5))  # intervals are epochs
@example(case=Case("adamw", "cosine", "mlp", (14, 9, 9), 2, {1: 3}, copied=4, width=3))
@example(case=Case("radam", "plateau", "mlp", (6, 5, 11, 3), 3, {1: 2, 3: 1}, {0: 4}, limit=3))
def test_any_member_of_any_lane_follows_its_single_run(case: Case, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Members of any length and progress join, leave, become NaN and are copied over."""
    folder = tmp_path_factory.mktemp("stopped")
    jobs = [case.job(seed, folder if seed in case.stopped else None) for seed in range(len(case.lengths))]
    for seed, at in case.stopped.items():
        solo(jobs[seed] | {"hook": jobs[seed]["hook"] | {"stop": InterruptAt(at)}})
        jobs[seed]["resume"] = True
    copies = CopyAfterVal(case.copied)
    fused, queue = fed(jobs, case.width, copies)
    fused.train()
    assert not queue.refusals
    assert [member.seed for member in fused.all_members] == list(range(len(case.lengths)))
    for seed, member in enumerate(fused.all_members):
        if seed in copies.overwritten:
            continue
        alone = solo(case.job(seed))
        assert member.failed == alone.members[0].failed
        if not member.failed:
            follows(member, alone)


def test_a_job_that_has_begun_joins_a_stack_elsewhere(tmp_path: Path) -> None:
    """It goes on where it stood, and so do the others: the stack keeps its count."""
    given = job(2, 11, tmp_path)
    solo(given | {"hook": given["hook"] | {"stop": InterruptAt(5)}})
    joins = Joins()
    fused, queue = fed([job(0, 12), job(1, 3), given | {"resume": True}], 2, joins)
    fused.train()
    assert joins.seen == [(3, [2])]
    assert [(span.epoch, span.iter) for span in queue.spans][2] == (1, 5)
    for seed, iterations in enumerate((12, 3, 11)):
        follows(fused.all_members[seed], solo(job(seed, iterations)))


def test_members_of_different_progress_share_a_stack_without_a_feed(tmp_path: Path) -> None:
    for seed, at in ((0, 2), (1, 7)):
        values = job(seed, 11, tmp_path)
        solo(values | {"hook": values["hook"] | {"stop": InterruptAt(at)}})
    fused = FusedRunner([job(seed, 11, tmp_path, resume=True) for seed in range(3)])
    fused.prepare()
    positions = [(member.epoch, member.batches_done, member.iter) for member in fused.members]
    assert positions == [(0, 2, 2), (1, 3, 7), (0, 0, 0)]
    fused.train()
    for seed in range(3):
        follows(fused.all_members[seed], solo(job(seed, 11)))


@pytest.mark.parametrize("optim", ["sgd", "adam"])
def test_a_captured_step_stays_captured(monkeypatch: pytest.MonkeyPatch, optim: str) -> None:
    """It is replayed for members that join within an epoch, with the bits of a step that is not captured."""
    monkeypatch.setattr(KernelOptimizer, "_runs", lambda *_: [])  # as on CUDA, where the numbers are in columns
    own = OPTIMS[optim] | {"_partial_": True, "lr": 0.01}
    runners = []
    graph = RecordedGraph()
    for how in (None, graph):
        jobs = [job(k, n, optim=own, schedule=SCHEDULES["onecycle"]) for k, n in enumerate((12, 6, 12, 6))]
        runner, queue = fed(jobs, 2)
        runner.prepare()
        if how is not None:
            modules = {**dict(runner.stack.code.named_modules()), "": runner.model}
            runner.__dict__["step"] = CapturedStep(runner.step, how, modules)
        runner.train()
        assert not queue.refusals
        assert [span.iter for span in queue.spans] == [0] * 4
        runners.append(runner)
    step: Any = runners[1].step
    assert step.refusal is None
    assert graph.captures == 1
    assert graph.replays == 18 - WARM_UP
    for mine, expected in zip(runners[1].all_members, runners[0].all_members, strict=True):
        for tensor, value in zip(mine.model.state_dict().values(), expected.model.state_dict().values(), strict=True):
            assert torch.equal(tensor, value)


class OwnEpochs(Hook):
    """A hook that counts epochs of the stack."""

    stackable = own_places = True

    def after_train_epoch(self, runner: Any) -> None: ...


@pytest.mark.parametrize("what", ["a smaller last batch", "a hook", "a schedule by epoch", "a long interval"])
def test_members_join_at_the_end_of_an_epoch_where_they_cannot_before(what: str) -> None:
    more: Config = {}
    length = BATCHES
    if what == "a smaller last batch":
        more, length = {"data": {"_target_": Points}}, 5
    elif what == "a schedule by epoch":
        more = {"schedule": SCHEDULES["by epoch"]}
    elif what == "a hook":
        more = {"hook": config(0, 1)["hook"] | {"own": {"_target_": OwnEpochs}}}
    else:
        more = {"interval": 100}
    joins = Joins()
    fused, queue = fed([job(seed, n, **more) for seed, n in enumerate((14, 9, 9))], 2, joins)
    fused.train()
    assert not queue.refusals
    assert joins.seen == [(-(-9 // length) * length, [2])]
    for seed, iterations in enumerate((14, 9, 9)):
        follows(fused.all_members[seed], solo(job(seed, iterations, **more)))


def test_what_cannot_join_within_an_epoch_says_why(tmp_path: Path) -> None:
    uneven = {"data": {"_target_": Points}}
    values = job(1, 9, tmp_path, **uneven)
    solo(values | {"hook": values["hook"] | {"stop": InterruptAt(2)}})
    given = values | {"resume": True}
    with pytest.raises(PlacesDiffer, match="of their epochs, and the last batch of an epoch is smaller"):
        FusedRunner([job(0, 9, **uneven), given]).prepare()
    fused, queue = fed([job(0, 10, **uneven), job(2, 5, **uneven), given], 2)
    fused.train()
    ((_, error),) = queue.refusals
    assert "(data.drop_last=true omits it)" in str(error)
    follows(fused.all_members[0], solo(job(0, 10, **uneven)))


def test_groups_of_batches_end_together(tmp_path: Path) -> None:
    """Of a job that is not at the end of a group as the others are, and one whose length no group divides."""
    jobs = [job(0, 12, accumulate=2, interval=2), job(1, 4, accumulate=2, interval=2)]
    values = job(2, 8, tmp_path, accumulate=2, interval=2)
    solo(values | {"hook": values["hook"] | {"stop": InterruptAt(3)}})
    more = [values | {"resume": True}, job(3, 7, accumulate=2, interval=2), job(4, 6, accumulate=2, interval=2)]
    fused, queue = fed([*jobs, *more], 2)
    fused.train()
    assert [type(error) for _, error in queue.refusals] == [PlacesDiffer, Unfusable]
    assert "accumulate=2 does not divide" in str(queue.refusals[0][1])
    for member, iterations in zip(fused.all_members, (12, 4, 6), strict=True):
        follows(member, solo(job(member.seed, iterations, accumulate=2, interval=2)))
