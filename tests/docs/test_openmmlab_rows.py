"""Rows of docs/coming-from-openmmlab.md that no other test runs."""

import json
import logging
import math
import re
import shlex
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts
from waiting import LIMIT

from trainyard.config.hydra_versions import VERSION_BASE, configure_log
from trainyard.hooks import Checkpoint, Hook
from trainyard.models import CNN
from trainyard.models.activation_checkpointing import checkpoint_activations
from trainyard.models.freeze import freeze
from trainyard.runner import Runner, checkpoint
from trainyard.runner.dispatch import PRIORITIES, STAGES

CONF = Path(__file__).parents[2] / "conf"
QUICK = ["data=rings", "data.num_samples=200", "model.hidden=[8]", "loop.max_epochs=2", "tracker=none", "work_dir=null"]

MINE = """\
import torch

class MySGD(torch.optim.SGD):
    "SGD under another name."

def make_optimizer(params, lr, **others):
    biases, weights = [], []
    for parameter in params:
        (biases if parameter.ndim == 1 else weights).append(parameter)
    return torch.optim.SGD([{"params": weights}, {"params": biases, "lr": 2 * lr}], lr)
"""


@pytest.fixture
def composed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)

    def run(*overrides: Any, hydra: bool = False, quick: Any = QUICK) -> Any:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONF), **VERSION_BASE):
            return compose("train", overrides=[*quick, *overrides], return_hydra_config=hydra)

    yield run
    sys.modules.pop("mine", None)


def test_a_dotted_path_is_all_that_a_part_needs(composed: Any) -> None:
    runner = Runner.from_cfg(composed("optim=sgd", "optim._target_=mine.MySGD", "optim.lr=0.5"))
    runner.train()
    assert type(runner.optimizer).__name__ == "MySGD"
    assert runner.learning_rates() == [0.5]


def test_an_optimizer_of_ones_own_making(composed: Any) -> None:
    runner = Runner.from_cfg(composed("optim=sgd", "optim._target_=mine.make_optimizer", "optim.lr=0.1"))
    runner.train()
    weights, biases = runner.optimizer.param_groups
    assert (weights["lr"], biases["lr"]) == (0.1, 0.2)
    assert {parameter.ndim for parameter in biases["params"]} == {1}


def test_values_from_values(composed: Any) -> None:
    config = composed("schedule=cosine", "schedule.end=${loop.max_epochs}", "loop.max_epochs=3")
    assert config.schedule.end == 3
    runner = Runner.from_cfg(config)
    runner.train()
    assert runner.learning_rates() == [pytest.approx(1e-3 * (1 + math.cos(2 / 3 * math.pi)) / 2)]


def test_the_name_of_the_run(composed: Any, tmp_path: Path) -> None:
    Runner.from_cfg(composed("name=mine"), work_dir=tmp_path / "run").train()
    assert json.loads((tmp_path / "run/run.json").read_text())["name"] == "mine"


def test_the_level_of_the_log(
    composed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = f"hydra.job_logging.handlers.file.filename={tmp_path / 'train.log'}"
    config = composed("hydra.job_logging.root.level=WARNING", file, hydra=True)
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    configure_log(config.hydra.job_logging)
    Runner.from_cfg({key: value for key, value in config.items() if key != "hydra"}).train()
    assert root.level == logging.WARNING
    assert capsys.readouterr() == ("", "")
    assert not (tmp_path / "train.log").exists()


def test_cosine_with_restarts(composed: Any) -> None:
    scheduler = "{_target_:torch.optim.lr_scheduler.CosineAnnealingWarmRestarts,_partial_:true,T_0:2,T_mult:2}"
    config = composed("schedule=constant", f"schedule.scheduler={scheduler}", "optim=sgd", "loop.max_epochs=7")

    class Rates(Hook):
        def __init__(self) -> None:
            self.rates: list[Any] = []

        def after_train_epoch(self, runner: Runner) -> None:
            self.rates += runner.learning_rates()

    seen = Rates()
    Runner.from_cfg(
        config, hooks={"param_schedule": {"_target_": "trainyard.hooks.ParamSchedule"}, "seen": seen}
    ).train()
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], config.optim.lr)
    theirs = CosineAnnealingWarmRestarts(optimizer, T_0=2, T_mult=2)
    expected = []
    for _ in range(7):
        expected += theirs.get_last_lr()
        optimizer.step()
        theirs.step()
    assert seen.rates == pytest.approx(expected)


def test_numbers_of_ones_own(composed: Any, tmp_path: Path) -> None:
    class Counts(Hook):
        def before_train(self, runner: Runner) -> None:
            runner.gauges["asked"] = lambda: float(runner.iter)

        def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
            if runner.iter % 2 == 0:
                runner.members[0].record({"train/x": 10.0 * runner.iter}, step=runner.iter, epoch=runner.epoch)

    logger = {"_target_": "trainyard.hooks.Logger", "interval": 2}
    runner = Runner.from_cfg(composed(), hooks={"mine": Counts(), "logger": logger}, work_dir=tmp_path / "run")
    runner.train()
    found = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    points: dict[str, dict[int, float]] = {name: {} for name in ("train/x", "train/asked")}
    for record in found:
        for name in points.keys() & record.get("values", {}).keys():
            points[name][record["step"]] = record["values"][name]
    steps = range(2, runner.iter + 1, 2)
    assert points == {"train/x": {i: 10.0 * i for i in steps}, "train/asked": {i: float(i) for i in steps}}


def test_stages_and_priorities_are_theirs() -> None:
    """Those of MMEngine 0.10."""
    theirs = ["before_run", "after_run", "after_load_checkpoint", "before_save_checkpoint"]
    theirs += [f"{when}_{what}" for what in ("train", "val", "test") for when in ("before", "after")]
    theirs += [
        f"{when}_{what}_{part}"
        for what in ("train", "val", "test")
        for when in ("before", "after")
        for part in ("epoch", "iter")
    ]
    assert len(theirs) == 22
    assert set(theirs) <= set(STAGES)
    ranks = {"HIGHEST": 0, "VERY_HIGH": 10, "HIGH": 30, "ABOVE_NORMAL": 40, "NORMAL": 50}
    assert ranks | {"BELOW_NORMAL": 60, "LOW": 70, "VERY_LOW": 90, "LOWEST": 100} == PRIORITIES


def test_names_that_a_pattern_revises(composed: Any) -> None:
    page = (CONF.parent / "docs/coming-from-openmmlab.md").read_text()
    (given,) = re.findall(r"`('load_from=[^`]*revise_keys:\[\[[^`]+)`", page)
    ((pattern, replacement),) = composed(*shlex.split(given)).load_from.revise_keys
    assert re.sub(pattern, replacement, "module.net.1.weight") == "net.1.weight"
    assert re.sub(pattern, replacement, "modules.1.weight") == "modules.1.weight"


def test_the_loop_does_not_wait_for_the_disk(composed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*arguments: Any) -> None:
        assert may_write.acquire(timeout=LIMIT), "the loop waits for the disk"
        save(*arguments)

    class After(Hook):
        """Lets the disk have what the hook before it has saved."""

        priority = "LOWEST"

        def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
            may_write.release()
            hooks["checkpoint"]._writer.wait()  # type: ignore[attr-defined] # what comes too soon waits for the one before it
            written.append(runner.iter)

    written: list[int] = []
    may_write, save = threading.Semaphore(0), checkpoint.save
    monkeypatch.setattr(checkpoint, "save", write)
    hooks = {"checkpoint": Checkpoint(1, max_keep=2, save_best=False), "after": After()}
    config = composed("loop=iter", "loop.max_iters=6", "optim=sgd", quick=["data=rings", *QUICK[-2:]])
    Runner.from_cfg(config, hooks=hooks, work_dir=tmp_path / "run").train()
    assert written == [1, 2, 3, 4, 5, 6]
    assert may_write.acquire(blocking=False) is False, "each was written"


def _kept(model: Any) -> Any:
    """Numbers that the forward pass keeps for the backward pass, apart from parameters."""
    own = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    held = []

    def pack(tensor: Any) -> Any:
        held.append(0 if tensor.data_ptr() in own else tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.train_step((torch.ones(8, 1, 8, 8), torch.zeros(8, dtype=torch.int64)))
    return sum(held)


def test_frozen_normalisation_under_activation_checkpointing_keeps_less(composed: Any) -> None:
    """What efficient_conv_bn_eval spares: in evaluation mode a BatchNorm's input need not be kept."""
    plain, spared = (CNN(1, 10, channels=[8, 8]) for _ in range(2))
    for model in (plain, spared):
        freeze(model, ["BatchNorm2d"])
        model.train()
    checkpoint_activations(spared, ["net"])
    normalised = sum(8 * 8 * 8 * 8 // 4**stage for stage in range(2))
    assert _kept(spared) < _kept(plain) - normalised

    options = ["freeze=[BatchNorm2d]", "activation_checkpointing=['net']", "optim=sgd", "optim.lr=0.1"]
    config = composed("model=cnn", "model.channels=[4,4]", *options, quick=["loop.max_epochs=1", *QUICK[-2:]])
    runner = Runner.from_cfg(config, hooks={})
    before = [value.clone() for value in runner.model.parameters() if value.requires_grad]
    runner.train()
    norms = [module for module in runner.model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert [int(module.num_batches_tracked) for module in norms] == [0, 0]
    after = [value for value in runner.model.parameters() if value.requires_grad]
    assert all(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
