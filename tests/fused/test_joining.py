"""Lanes: members of different lengths and places share a stack, join it, leave it, and follow their single runs."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from interrupting import InterruptAt
from lane_jobs import BATCHES, MODELS, OPTIMS, SCHEDULES, Config, Points, Poison, config, follows, solo
from recorded_graph import RecordedGraph
from same_run import alike, points
from torch import Tensor, nn
from torch.nn import functional as F

from trainyard.errors import PlacesDiffer, Unfusable
from trainyard.fused.feed import LaneQueue
from trainyard.fused.optim.kernel import KernelOptimizer
from trainyard.fused.runner import FusedRunner
from trainyard.fused.train import ALLOWED, FIXED_WITH, NOT_COMPARED
from trainyard.hooks import Hook
from trainyard.models import BaseModel
from trainyard.runner import Runner
from trainyard.runner.default_hooks import default_hooks
from trainyard.runner.dispatch import build_hooks
from trainyard.step.cuda_graph.captured_step import WARM_UP, CapturedStep
from trainyard.sweep.kinds import kinds


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Copy(Hook):
    """Lets the last lane go on as the first, after an epoch of the stack."""

    stackable = own_places = True

    def __init__(self, after: int | None) -> None:
        self.after = after
        self.overwritten: set[int] = set()

    def after_train_epoch(self, runner: Any) -> None:
        one, other = runner.members[0], runner.members[-1]
        ends = any(member.leaves or member.at_end for member in (one, other))
        if runner.epoch == self.after and one is not other and not ends:
            runner.occupancy.copy(0, len(runner.members) - 1)
            self.overwritten.add(other.seed)


class InterruptAfter(Hook):
    """Interrupts the run after the validation of an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def after_val(self, runner: Runner) -> None:
        if runner.epoch == self.epoch:
            runner.interrupt()


def test_members_of_different_lengths_share_a_stack(tmp_path: Path) -> None:
    fused = FusedRunner([config(k, epochs, tmp_path / "fused") for k, epochs in enumerate((4, 2, 3))])
    fused.train()
    for k, epochs in enumerate((4, 2, 3)):
        follows(fused.all_members[k], solo(config(k, epochs, tmp_path / "solo")))
        alike(tmp_path / "fused" / str(k), tmp_path / "solo" / str(k))


def test_members_join_free_lanes(tmp_path: Path) -> None:
    lengths = (3, 1, 2, 2, 1, 4)
    jobs = [config(k, epochs, tmp_path / "fused") for k, epochs in enumerate(lengths)]
    queue = LaneQueue(jobs[2:])
    fused = FusedRunner(jobs[:2], feed=queue)
    fused.train()
    begun = [(0, 2), (1, 2)]
    cut = [(0, 1)]
    assert [(span.lane, span.width) for span in queue.spans] == [*begun, (1, 2), (0, 2), (1, 2), (1, 2), *cut]
    assert not queue.refusals
    for k, epochs in enumerate(lengths):
        follows(fused.all_members[k], solo(config(k, epochs, tmp_path / "solo")))
        alike(tmp_path / "fused" / str(k), tmp_path / "solo" / str(k))


@dataclass(frozen=True)
class Case:
    """What the members train, and what befalls them.

    Attributes:
        lengths: of the members' trainings, in epochs.
        poisoned: iteration after which a member, by its seed, becomes NaN.
        by_iter: whether the loop counts iterations.
        width: lanes of the stack.
        copied: epoch of the stack after which the last lane goes on as the first.
    """

    optim: str = "sgd"
    schedule: str = "constant"
    model: str = "mlp"
    lengths: tuple[int, ...] = (2, 1, 1)
    poisoned: Mapping[int, int] = field(default_factory=dict)
    by_iter: bool = False
    clip: float | None = None
    accumulate: int = 1
    width: int = 2
    copied: int | None = None

    def job(self, seed: int) -> Config:
        length = self.lengths[seed]
        made = config(seed, length, model=MODELS[self.model], schedule=SCHEDULES[self.schedule])
        made |= {"clip_grad_norm": self.clip, "accumulate": self.accumulate}
        optim = OPTIMS[self.optim]
        made["optim"] = optim | {"_partial_": True, "lr": optim["lr"] * (1 + seed / 2)}
        made["hook"] = made["hook"] | {"poison": {"_target_": Poison, "at": dict(self.poisoned)}}
        if self.by_iter:
            end = {"max_iters": BATCHES * length + seed % 3, "val_interval": BATCHES - 1}
            made["loop"] = {"_target_": "trainyard.runner.IterBasedTrainLoop", **end}
        return made


@st.composite
def cases(draw: st.DrawFn) -> Case:
    schedule, by_iter = draw(st.sampled_from(list(SCHEDULES))), draw(st.booleans())
    shortest = 2 if schedule in ("onecycle", "by epoch") else 1
    lengths = draw(st.lists(st.integers(shortest, 4), min_size=3, max_size=5).map(tuple))
    return Case(
        draw(st.sampled_from(list(OPTIMS))),
        schedule,
        draw(st.sampled_from(list(MODELS))),
        lengths,
        draw(st.dictionaries(st.integers(0, len(lengths) - 1), st.integers(1, 2 * BATCHES + 2), max_size=2)),
        by_iter,
        draw(st.sampled_from([None, 0.5])),
        1 if by_iter else draw(st.integers(1, 3)),
        draw(st.integers(2, len(lengths))),
        draw(st.one_of(st.none(), st.integers(1, 3))),
    )


@settings(max_examples=8, derandomize=True)
@given(case=cases())
@example(Case(poisoned={0: 2 * BATCHES}))  # NaN after the last iteration, where no loss tells it
@example(Case("adam", "onecycle", "batch norm", (4, 2, 3), {1: 3}, clip=0.5, accumulate=3, copied=2))
@example(Case("adagrad", "plateau", "mlp", (3, 1, 2), {2: 4}, by_iter=True, width=3, copied=1))
@example(Case("radam", "by epoch", "mlp", (2, 3, 2, 3), accumulate=2, width=3, copied=1))
def test_any_member_of_any_lane_follows_its_single_run(case: Case) -> None:
    """Members of any length join, leave, become NaN and are copied over; what they train is drawn at random."""
    seeds = range(len(case.lengths))
    queue = LaneQueue([case.job(seed) for seed in seeds[case.width :]])
    fused = FusedRunner([case.job(seed) for seed in seeds[: case.width]], feed=queue)
    copies = Copy(case.copied)
    fused.added_hooks = {"copy": copies}
    fused.train()
    assert not queue.refusals
    assert [member.seed for member in fused.all_members] == list(seeds)
    for seed, member in enumerate(fused.all_members):
        if seed in copies.overwritten:
            continue
        alone = solo(case.job(seed))
        assert member.failed == alone.members[0].failed
        if not member.failed:
            follows(member, alone)


@pytest.mark.parametrize("by_iter", [False, True])
def test_members_fail_at_their_last_iterations(tmp_path: Path, by_iter: bool) -> None:
    """A weight that is NaN after the last iteration, and a loss at it, are told as by their single runs."""
    case = Case(lengths=(2, 1, 2), poisoned={0: 2 * BATCHES, 2: 2 * BATCHES + 1 if by_iter else 9}, by_iter=by_iter)

    def job(seed: int, folder: str) -> Config:
        return case.job(seed) | {"work_dir": str(tmp_path / folder / str(seed))}

    fused = FusedRunner([job(0, "fused"), job(1, "fused")], feed=LaneQueue([job(2, "fused")]))
    fused.train()
    assert [member.failed for member in fused.all_members] == [True, False, True]
    for seed, member in enumerate(fused.all_members):
        alone = solo(job(seed, "solo"))
        assert member.stop_reason == alone.members[0].stop_reason
        alike(tmp_path / "fused" / str(seed), tmp_path / "solo" / str(seed))


@pytest.mark.parametrize("limit", [{"train_batches": 3, "val_batches": 2}, {"train_batches": 0.5}])
def test_lanes_of_a_part_of_the_data(tmp_path: Path, limit: Config) -> None:
    """Members that joined, and members that were at other places, read the batches of their own epochs."""
    jobs = [config(seed, epochs, tmp_path / "fused", limit=limit) for seed, epochs in enumerate((2, 1, 2))]
    FusedRunner(jobs[:2], feed=LaneQueue(jobs[2:])).train()
    for seed, epochs in enumerate((2, 1, 2)):
        solo(config(seed, epochs, tmp_path / "solo", limit=limit))
        alike(tmp_path / "fused" / str(seed), tmp_path / "solo" / str(seed))


def test_lanes_that_repeat_a_few_batches_are_refused() -> None:
    with pytest.raises(Unfusable, match="the val batches are in a different order for each member"):
        FusedRunner([config(seed, 1 + seed, overfit=2) for seed in range(2)]).train()
    alike = [config(0, epochs, overfit=2) for epochs in (1, 2)]
    with pytest.raises(PlacesDiffer, match="overfit validates on the batches of one epoch"):
        FusedRunner(alike, feed=LaneQueue([])).prepare()
    FusedRunner(alike).train()


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("joins", [False, True])
def test_members_go_on_with_other_values(tmp_path: Path, schedule: str, joins: bool) -> None:
    """`resume_override` counts for the members that have it, from the beginning of a stack and for those that join."""

    def job(seed: int, folder: str, **more: Any) -> Config:
        return config(seed, 3, tmp_path / folder, schedule=SCHEDULES[schedule], **more)

    def other(seed: int, folder: str) -> Config:
        optim = {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.02, "weight_decay": 0.1}
        keys = ["optim.lr", "optim.weight_decay"]
        return job(seed, folder, optim=optim, resume=True, resume_override=keys)

    for folder in ("fused", "solo"):
        values = job(0, folder)
        solo(values | {"hook": values["hook"] | {"stop": InterruptAfter(1)}})
    given = other(0, "fused")
    if joins:
        loop = {"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": 1}
        fused = FusedRunner([job(2, "fused") | {"loop": loop}, job(1, "fused")], feed=LaneQueue([given]))
    else:
        fused = FusedRunner([given, job(1, "fused")])
    fused.train()
    (member,) = (each for each in fused.all_members if each.seed == 0)
    journal = (tmp_path / "fused/0/metrics.jsonl").read_text()
    assert '"resume_override.optim.lr":"0.01 -> 0.02 at iteration 5"' in journal
    alone = solo(other(0, "solo"))
    assert (member.iter, member.epoch) == (alone.iter, alone.epoch)
    for (name, tensor), expected in zip(
        member.model.state_dict().items(), alone.model.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(tensor, expected, rtol=1e-10, atol=1e-10, msg=name)
    assert points(tmp_path / "fused/0") == pytest.approx(points(tmp_path / "solo/0"), rel=1e-9)
    follows(next(each for each in fused.all_members if each.seed == 1), solo(job(1, "solo")))


def test_another_batch_size_is_for_one_run_at_a_time() -> None:
    changed = config(0, 2, resume_override=["data.batch_size"])
    with pytest.raises(Unfusable, match=r"resume_override=\[data\.batch_size\] is not supported in a stack"):
        FusedRunner([changed, config(1, 2)])


def test_lanes_are_free_from_the_beginning(tmp_path: Path) -> None:
    """Members keep the lanes that they had; a job joins the free one, and what stays free is cut out."""
    queue = LaneQueue([config(2, 2, tmp_path / "fused")])
    fused = FusedRunner([None, config(0, 3, tmp_path / "fused"), None, config(1, 2, tmp_path / "fused")], feed=queue)
    fused.train()
    assert [(span.member.seed, span.lane, span.width, span.epoch) for span in queue.spans] == [
        *((0, 1, 4, 0), (1, 3, 4, 0), (2, 0, 4, 0)),
        *((2, 0, 3, 0), (0, 1, 3, 0), (1, 2, 3, 0)),
        (0, 0, 1, 2),
    ]
    for seed, epochs in enumerate((3, 2, 2)):
        follows(fused.all_members[seed], solo(config(seed, epochs, tmp_path / "solo")))


def test_members_of_different_progress_share_a_stack(tmp_path: Path) -> None:
    """Begun alone and interrupted at different epochs, and one that has not begun."""
    for seed, epochs in ((0, 1), (1, 3)):
        values = config(seed, 5, tmp_path / "own")
        values["hook"] = values["hook"] | {"stop": InterruptAfter(epochs)}
        solo(values)
    fused = FusedRunner([config(seed, 5, tmp_path / "own", resume=True) for seed in range(3)])
    fused.prepare()
    assert [(member.epoch, member.iter) for member in fused.members] == [(1, 5), (3, 15), (0, 0)]
    fused.train()
    for seed in range(3):
        follows(fused.all_members[seed], solo(config(seed, 5, tmp_path / "solo")))
    alike(tmp_path / "own" / "2", tmp_path / "solo" / "2")


def test_a_lane_goes_on_as_another(tmp_path: Path) -> None:
    """The copy ends with the weights of the lane that was copied; a third one is not touched."""

    class Copy(Hook):
        stackable = own_places = True

        def after_train_epoch(self, runner: Any) -> None:
            if runner.epoch == 2:
                runner.occupancy.copy(0, 1)

    jobs = [config(seed, 4, hook=config(seed, 4)["hook"] | {"copy": Copy()}) for seed in range(3)]
    fused = FusedRunner(jobs)
    fused.train()
    first, second, third = fused.all_members
    alone = [solo(config(seed, 4)) for seed in (0, 2)]
    follows(first, alone[0])
    follows(third, alone[1])
    for own, theirs in ((second.model, first.model), (second.eval_model, first.eval_model)):
        for tensor, expected in zip(own.state_dict().values(), theirs.state_dict().values(), strict=True):
            assert torch.equal(tensor, expected)
    for key in ("val/loss", "train/loss", "train/lr"):
        assert second.metrics[key] == first.metrics[key]


def test_what_counts_for_all_members_is_refused(tmp_path: Path) -> None:
    solo(config(0, 2, tmp_path))
    hooks = config(0, 4)["hook"] | {"norms": {"_target_": "trainyard.hooks.Norms"}}
    with pytest.raises(
        PlacesDiffer, match=r"hook\.norms \(Norms\) counts the same epochs and iterations for all members"
    ):
        FusedRunner([config(seed, 4, tmp_path, hook=hooks, resume=True) for seed in range(2)]).prepare()
    loop = {"_target_": "trainyard.runner.EpochBasedTrainLoop"}
    own = [config(k, 4, loop=loop | {"max_epochs": 2 + k, "val_interval": 1 + k}) for k in range(2)]
    with pytest.raises(Unfusable, match="val_interval"):
        FusedRunner(own).prepare()
    values = config(3, 4, tmp_path)
    values["hook"] = values["hook"] | {"stop": InterruptAt(3)}
    solo(values)
    with pytest.raises(PlacesDiffer, match="different batches of their epochs, and the loop counts epochs"):
        FusedRunner([config(seed, 4, tmp_path, resume=True) for seed in (3, 4)]).prepare()


class Spatial(BaseModel):
    """Uses a function of dropout that needs one probability."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.dropout = dropout

    def forward(self, x: Tensor, y: Tensor | None = None, mode: str = "tensor") -> Any:
        out = F.dropout2d(self.layer(x)[..., None, None], self.dropout, self.training).flatten(1)
        return {"loss": F.cross_entropy(out, y)} if mode == "loss" else out


def test_a_probability_that_must_be_equal() -> None:
    """Only a stack that jobs can join refuses equal ones, because those of a job that joins could differ."""
    told = "the probability of dropout2d must be equal for all members"
    equal, different = (
        [config(seed, 1, model={"_target_": Spatial, "dropout": p}) for seed, p in enumerate(shares)]
        for shares in ((0.2, 0.2), (0.2, 0.3))
    )
    FusedRunner(equal).prepare()
    with pytest.raises(PlacesDiffer, match=told):
        FusedRunner(equal, feed=LaneQueue([])).prepare()
    with pytest.raises(Unfusable, match=told):
        FusedRunner(different).prepare()


def test_a_job_of_another_kind_is_refused_and_the_next_joins() -> None:
    other = config(1, 2, optim={"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1})
    groups = config(1, 2, optim=config(1, 2)["optim"] | {"paramwise": {"bias_lr_mult": 2}})
    wide = config(2, 2, model=MODELS["mlp"] | {"hidden": [5]})
    plain = {"model": MODELS["mlp"]}
    queue = LaneQueue([other | plain, groups | plain, wide, config(3, 2, **plain)])
    fused = FusedRunner([config(0, 1, **plain), config(4, 3, **plain)], feed=queue)
    fused.train()
    assert [str(error) for _, error in queue.refusals] == [
        "the optimizers are of several classes: Adam, SGD",
        "the optimizers differ in their parameter groups",
        "the models differ in net.1.weight: [5, 2] float64 and [4, 2] float64",
    ]
    assert [span.member.seed for span in queue.spans] == [0, 4, 3]
    follows(fused.all_members[2], solo(config(3, 2, **plain)))


@pytest.mark.parametrize("optim", ["sgd", "adam"])
def test_a_captured_step_stays_captured(monkeypatch: pytest.MonkeyPatch, optim: str) -> None:
    """It is replayed for members that join and for a copied one, with the bits of a step that is not captured."""
    monkeypatch.setattr(KernelOptimizer, "_runs", lambda *_: [])  # as on CUDA, where the numbers are in columns

    class Copy(Hook):
        stackable = own_places = True

        def after_train_epoch(self, runner: Any) -> None:
            if runner.epoch == 3:
                runner.occupancy.copy(0, 1)

    def job(seed: int, epochs: int) -> Config:
        own = OPTIMS[optim] | {"_partial_": True, "lr": 0.01 * (seed + 1)}
        data = {"_target_": Points, "samples": 24}
        clip = {"clip_grad_norm": 0.1 * (seed + 1)}
        made = config(seed, epochs, optim=own, data=data, schedule=SCHEDULES["onecycle"], **clip)
        return made | {"hook": made["hook"] | {"copy": Copy()}}

    runners = []
    graph = RecordedGraph()
    for how in (None, graph):
        queue = LaneQueue([job(2, 3), job(3, 2), job(4, 4), job(5, 3)])
        runner = FusedRunner([job(0, 4), job(1, 2)], feed=queue)
        runner.prepare()
        if how is not None:
            modules = {**dict(runner.stack.code.named_modules()), "": runner.model}
            runner.__dict__["step"] = CapturedStep(runner.step, how, modules)
        addresses = [parameter.data_ptr() for parameter in runner.stack.parameters()]
        runner.occupancy.release = watched(runner, addresses)  # type: ignore[method-assign]
        runner.train()
        assert len(queue.spans) == 2 + 4
        runners.append(runner)
    step: Any = runners[1].step
    assert step.refusal is None
    assert graph.captures == 1
    assert graph.replays == 8 * 4 - WARM_UP
    for own, expected in zip(runners[1].all_members, runners[0].all_members, strict=True):
        for tensor, value in zip(own.model.state_dict().values(), expected.model.state_dict().values(), strict=True):
            assert torch.equal(tensor, value)


def watched(runner: FusedRunner, addresses: list[int]) -> Any:
    """Occupancy's `release`, after a check that no parameter has moved."""
    release = runner.occupancy.release

    def checked(leaving: Any) -> None:
        release(leaving)
        assert [parameter.data_ptr() for parameter in runner.stack.parameters()] == addresses

    return checked


def test_default_hooks_keep_a_place_for_each_member() -> None:
    assert all(hook.own_places for hook in build_hooks(default_hooks()).values())


def test_lines_of_text_count_as_the_member_does(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    hook = {"logger": {"_target_": "trainyard.hooks.Logger", "interval": 5, "line_every": 0}}
    jobs = [config(seed, epochs, hook=hook, schedule=None) for seed, epochs in enumerate((3, 1, 2))]
    FusedRunner(jobs[:2], feed=LaneQueue(jobs[2:])).train()
    lines = [record.getMessage().partition("  loss")[0] for record in caplog.records if "eta" in record.getMessage()]
    assert lines == [
        "epoch 1/3  iter 5/15",
        "epoch 1/1  iter 5/5",
        "epoch 2/3  iter 10/15",
        "epoch 1/2  iter 5/10",
        "epoch 3/3  iter 15/15",
        "epoch 2/2  iter 10/10",
    ]


def test_jobs_of_different_lengths_are_of_one_kind() -> None:
    jobs = [{"loop": {"_target_": "Loop", "max_epochs": epochs, "val_interval": 1}} for epochs in (3, 5)]
    assert len(kinds(jobs, ALLOWED, NOT_COMPARED, FIXED_WITH)) == 1
    jobs[1]["loop"]["val_interval"] = 2
    assert len(kinds(jobs, ALLOWED, NOT_COMPARED, FIXED_WITH)) == 2


def test_jobs_with_a_workflow_are_of_one_kind_by_length() -> None:
    def job(epochs: int, seed: int) -> Config:
        turns = [["train", 1], ["val", 1]]
        return {"seed": seed, "loop": {"_target_": "Loop", "max_epochs": epochs, "workflow": turns}}

    found = kinds([job(3, 0), job(5, 1), job(3, 2), job(5, 3)], ALLOWED, NOT_COMPARED, FIXED_WITH)
    assert [kind.members for kind in found] == [[0, 2], [1, 3]]
