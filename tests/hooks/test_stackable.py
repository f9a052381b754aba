"""The hooks that measure, for three members of a fused group: what each finds is what its solo run finds."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from trainyard.data import Data, EpochBatchSampler
from trainyard.data.dataset_loader import dataset_loader
from trainyard.data.tensor_loader import TensorLoader
from trainyard.fused.runner import FusedRunner
from trainyard.runner import Runner
from trainyard.track import read

HOOKS = {
    "empty_cache": {"_target_": "trainyard.hooks.EmptyCache", "after_iter": True},
    "model_summary": {"_target_": "trainyard.hooks.ModelSummary"},
    "norms": {"_target_": "trainyard.hooks.Norms", "interval": 4, "by_module": True},
    "precise_bn": {"_target_": "trainyard.hooks.PreciseBN", "batches": 4},
    "train_metrics": {"_target_": "trainyard.hooks.TrainMetrics", "batches": 4},
    "profiler": {"_target_": "trainyard.hooks.Profiler"},
    "system_metrics": {"_target_": "trainyard.hooks.SystemMetrics"},
    "lr_finder": {"_target_": "trainyard.hooks.LRFinder", "iterations": 40},
}


@pytest.fixture(autouse=True)
def double() -> Iterator[Any]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Points(Data):
    """Two classes of points in the plane, apart by a circle; each member has them in an order of its own."""

    def __init__(self) -> None:
        self.spec = {}
        self.splits = ("train", "val")
        self.x = torch.randn(192, 2, generator=torch.Generator().manual_seed(0))
        self.y = (self.x.norm(dim=1) > 1.1).long()

    def loader(self, split: Any, *, seed: Any, device: Any) -> Any:
        return TensorLoader((self.x, self.y), 32, shuffle=split == "train", seed=seed, device=device)


def config(member: Any, folder: Any, hooks: Any, **more: Any) -> Any:
    return {
        "model": {
            "_target_": "trainyard.models.MLP",
            "in_features": 2,
            "num_classes": 2,
            "hidden": [8, 8],
            "batch_norm": True,
        },
        "data": {"_target_": Points},
        "optim": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.01 * (member + 1), "momentum": 0.9},
        "loop": {"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": 3},
        "hook": {name: HOOKS[name] for name in hooks} | more.pop("hook", {}),
        "metric": {"loss": {"_target_": "trainyard.metrics.CrossEntropy"}},
        "device": "cpu",
        "seed": member,
        "work_dir": str(folder / str(member)),
    } | more


def both(folder: Any, hooks: Any, **more: Any) -> Any:
    """The same three runs as a group, and one by one."""
    fused = FusedRunner([config(member, folder / "fused", hooks, **more) for member in range(3)])
    fused.train()
    solos = [Runner.from_cfg(config(member, folder / "solo", hooks, **more)) for member in range(3)]
    for solo in solos:
        solo.train()
    return fused, solos


def journal(folder: Any, prefix: Any) -> Any:
    return {
        (name, record["step"]): value
        for record, _ in read(folder / "metrics.jsonl")
        if record["kind"] == "metrics"
        for name, value in record["values"].items()
        if name.startswith(prefix)
    }


@pytest.mark.parametrize("more", [{}, {"clip_grad_norm": 0.1}, {"accumulate": 4}], ids=str)
def test_norms(tmp_path: Path, more: Any) -> None:
    both(tmp_path, ["norms"], **more)
    for member in range(3):
        ours, theirs = (journal(tmp_path / kind / str(member), "norm/") for kind in ("fused", "solo"))
        assert len(theirs) == 4 * 2 * 6, "four points, of gradients and weights, of five modules and of all"
        assert ours == pytest.approx(theirs, rel=1e-8)


def test_norms_once_a_member_has_left(tmp_path: Path) -> None:
    stop = {"hook": {"stop": {"_target_": "trainyard.hooks.EarlyStopping", "patience": 1, "min_delta": 0.02}}}
    fused, _ = both(tmp_path, ["norms"], clip_grad_norm=0.1, accumulate=4, **stop)
    assert len({solo.iter for solo in fused.all_members}) > 1, "nobody left before the others: this has tested nothing"
    for member in range(3):
        ours, theirs = (journal(tmp_path / kind / str(member), "norm/") for kind in ("fused", "solo"))
        assert ours == pytest.approx(theirs, rel=1e-8)


@pytest.mark.parametrize("average", [False, True])
def test_precise_bn(tmp_path: Path, average: bool) -> None:
    hook = {"hook": {"ema": {"_target_": "trainyard.hooks.EMA", "decay": 0.5}}} if average else {}
    fused, solos = both(tmp_path, ["precise_bn"], **hook)
    for ours, theirs in zip(fused.members, solos, strict=True):
        expected = dict(theirs.eval_model.named_buffers())
        assert expected["net.2.running_var"].var() > 0
        for name, buffer in ours.eval_model.named_buffers():
            torch.testing.assert_close(buffer, expected[name], rtol=1e-7, atol=1e-9)
    for member in range(3):
        ours, theirs = (journal(tmp_path / kind / str(member), "val/") for kind in ("fused", "solo"))
        assert ours == pytest.approx(theirs, rel=1e-7)


class Worked(Points):
    """The same points from workers that persist."""

    def loader(self, split: Any, *, seed: Any, device: Any) -> Any:
        sampler = EpochBatchSampler(192, 32, shuffle=split == "train", drop_last=False, seed=seed)
        return dataset_loader(TensorDataset(self.x, self.y), sampler, workers=1, device=device)


def test_precise_bn_within_an_epoch_that_workers_read(tmp_path: Path) -> None:
    """Some members leave the stack early: the loader of the hook serves those that remain."""
    stop = {"stop": {"_target_": "trainyard.hooks.EarlyStopping", "patience": 1, "min_delta": 0.04}}
    loop = {"_target_": "trainyard.runner.IterBasedTrainLoop", "max_iters": 24, "val_interval": 4}
    fused, solos = both(tmp_path, ["precise_bn"], data={"_target_": Worked}, loop=loop, hook=stop)
    assert len({member.iter for member in fused.all_members}) > 1, "nobody left early: this has tested nothing"
    for ours, theirs in zip(fused.all_members, solos, strict=True):
        assert ours.iter == theirs.iter
    for member in range(3):
        ours, theirs = (journal(tmp_path / kind / str(member), "val/") for kind in ("fused", "solo"))
        assert ours == pytest.approx(theirs, rel=1e-7)


def test_train_metrics(tmp_path: Path) -> None:
    both(tmp_path, ["train_metrics"])
    for member in range(3):
        ours, theirs = (journal(tmp_path / kind / str(member), "train_eval/loss") for kind in ("fused", "solo"))
        assert len(theirs) == 3
        assert ours == pytest.approx(theirs, rel=1e-7)


def test_lr_finder(tmp_path: Path) -> None:
    fused, solos = both(tmp_path, ["lr_finder"])
    for member in range(3):
        ours, theirs = (
            json.loads((tmp_path / kind / str(member) / "lr_finder.json").read_text()) for kind in ("fused", "solo")
        )
        assert ours["suggestion"] == theirs["suggestion"] is not None
        assert ours["lr"] == theirs["lr"]
        assert ours["loss"][:20] == pytest.approx(theirs["loss"][:20], rel=1e-7)
    for ours, theirs in zip(fused.members, solos, strict=True):
        assert ours.iter == theirs.iter == 0
        rates = [[group["lr"] for group in run.optimizer.param_groups] for run in (ours, theirs)]
        assert rates[0] == rates[1]
        for mine, its in zip(ours.model.state_dict().values(), theirs.model.state_dict().values(), strict=True):
            assert torch.equal(mine, its)


def test_model_summary(tmp_path: Path) -> None:
    both(tmp_path, ["model_summary"])
    files = [tmp_path / kind / str(member) / "summary.txt" for kind in ("fused", "solo") for member in range(3)]
    assert len({file.read_text() for file in files}) == 1


def test_system_metrics(tmp_path: Path) -> None:
    both(tmp_path, ["system_metrics"])
    for member in range(3):
        ours, theirs = (journal(tmp_path / kind / str(member), "system/") for kind in ("fused", "solo"))
        of_ticks = {"system/cpu_utilization_percentage"}  # absent where no tick of the clock fell into the run
        names, its_names = ({name for name, _ in points} - of_ticks for points in (ours, theirs))
        assert names == its_names >= {"system/process_memory_megabytes"}


def test_members_are_profiled_as_one_program(tmp_path: Path) -> None:
    FusedRunner([config(member, tmp_path, ["profiler"]) for member in range(3)]).train()
    traces = {str(file.relative_to(tmp_path)) for file in tmp_path.glob("*/profile/*.json.gz")}
    assert traces == {"0/profile/iter_00000015.json.gz"}


def test_empty_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "trainyard"):
        FusedRunner([config(member, tmp_path, ["empty_cache"]) for member in range(3)]).train()
    assert sum("EmptyCache" in message for message in caplog.messages) == 1
