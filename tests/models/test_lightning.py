"""LightningModules as they are, compared with Lightning's own Trainer. Skipped where Lightning is not installed."""

from __future__ import annotations

import copy
import functools
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR, OneCycleLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, TensorDataset
from waiting import LIMIT

from trainyard.errors import ConfigError, TrainyardError
from trainyard.hooks import Checkpoint
from trainyard.metrics import Accuracy, Logged
from trainyard.models import Lightning
from trainyard.models.lightning.checks import REFUSED
from trainyard.optim import ByModel
from trainyard.runner import EpochBasedTrainLoop, Runner
from trainyard.runner.batch_checks import check_test_step

pytest.importorskip("lightning")
import lightning
from lightning.pytorch.core.hooks import CheckpointHooks, DataHooks, ModelHooks
from torchmetrics.classification import MulticlassAccuracy

EPOCHS = 4
ROOT = Path(__file__).parents[2]


class Classifier(lightning.LightningModule):
    """Logs by step and by epoch, with a metric of torchmetrics, and has a scheduler of the kind that is asked for."""

    def __init__(self, kind: str = "none", dropout: float = 0.0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 3))
        self.accuracy = MulticlassAccuracy(3, average="micro")
        self.seen: list[str] = []

    def forward(self, x: Tensor) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        self.log("train_loss_of_part", 2 * loss)
        self.seen.append(f"{self.current_epoch}.{batch_idx}.{self.global_step}")
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.accuracy(self(x), y)
        self.log("val_loss", nn.functional.cross_entropy(self(x), y))
        self.log_dict({"val_acc": self.accuracy, "val/most": x.max()}, reduce_fx="max")

    def on_validation_epoch_end(self) -> None:
        self.log("val_epoch", float(self.current_epoch))

    def test_step(self, batch: Any) -> None:
        self.log("test_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05)
        kind = self.hparams["kind"]
        if kind == "none":
            return optimizer
        if kind == "epochs":
            return [optimizer], [{"scheduler": StepLR(optimizer, 1, 0.5), "frequency": 2}]
        if kind == "plain":
            return [optimizer], [ExponentialLR(optimizer, 0.7)]
        if kind == "steps":
            total = self.trainer.estimated_stepping_batches
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": OneCycleLR(optimizer, 0.1, total), "interval": "step"},
            }
        plateau = ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=0.2)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}


def loaders() -> dict[str, DataLoader[Any]]:
    torch.manual_seed(3)
    x, y = torch.randn(22, 4), torch.randint(3, (22,))
    return {name: DataLoader(TensorDataset(x[rows], y[rows]), 4) for name, rows in SPLITS.items()}


SPLITS = {"train": slice(0, 12), "val": slice(12, 22)}  # the last batch of the validation is shorter


def runner(module: Any, **settings: Any) -> Runner:
    settings = {"hooks": {}, "metrics": {"logged": Logged()}, "optim": ByModel(), "device": "cpu"} | settings
    return Runner(Lightning(module), loaders(), loop=EpochBasedTrainLoop(EPOCHS), **settings)


def by_lightning(module: Any, tmp_path: Path, **options: Any) -> Any:
    trainer = lightning.Trainer(
        max_epochs=EPOCHS,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        default_root_dir=tmp_path,
        num_sanity_val_steps=0,
        **options,
    )
    data = loaders()
    trainer.fit(module, data["train"], data["val"])
    return trainer


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["none", "plain", "epochs", "steps", "plateau"])
def test_the_numbers_are_those_of_lightning(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = Classifier(kind)
    ours = copy.deepcopy(theirs)
    trainer = by_lightning(theirs, tmp_path)
    (metrics,) = runner(ours).train()
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(own, other)
    for name, value in (("loss", "val_loss"), ("acc", "val_acc"), ("most", "val/most"), ("epoch", "val_epoch")):
        assert metrics[f"val/{name}"] == pytest.approx(float(trainer.callback_metrics[value]), rel=1e-6)
    assert ours.seen[-12:] == theirs.seen  # ours has the sanity check before


class OtherNames(Classifier):
    """The index of a batch is an argument of any name, as in Lightning."""

    def training_step(self, batch: Any, number: int) -> Tensor:
        return super().training_step(batch, number)

    def validation_step(self, batch: Any, number: int) -> None:
        self.seen.append(f"val {number}")
        super().validation_step(batch, number)

    def on_train_batch_end(self, outputs: Any, batch: Any, number: int) -> None:
        self.seen.append(f"end {number}")


@pytest.mark.filterwarnings("ignore")
def test_the_index_of_a_batch_has_any_name(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = OtherNames()
    ours = copy.deepcopy(theirs)
    by_lightning(theirs, tmp_path)
    runner(ours).train()
    assert ours.seen[-len(theirs.seen) :] == theirs.seen


@pytest.mark.filterwarnings("ignore")
def test_accumulated_gradients_are_those_of_lightning(tmp_path: Path) -> None:
    theirs = Classifier("steps")
    ours = copy.deepcopy(theirs)
    by_lightning(theirs, tmp_path, accumulate_grad_batches=3)
    runner(ours, accumulate=3).train()
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own, other)


@pytest.mark.parametrize("kind", ["steps", "plateau"])
def test_a_resumed_run_continues_to_the_same_bits(kind: str, tmp_path: Path) -> None:
    def trained(folder: Path, epochs: int, **settings: Any) -> Any:
        torch.manual_seed(0)
        module = Classifier(kind, dropout=0.3)
        made = runner(module, hooks={"checkpoint": Checkpoint(interval=1)}, work_dir=folder, **settings)
        if epochs < EPOCHS:
            made.train_loop.validate = functools.partial(interrupt_after, made, epochs, made.train_loop.validate)  # type: ignore[method-assign]
        made.train()
        return module.state_dict(), made.optimizer.state_dict()

    whole, optimizer = trained(tmp_path / "whole", EPOCHS)
    trained(tmp_path / "parts", 2)
    resumed, other = trained(tmp_path / "parts", EPOCHS, resume=True)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert optimizer["param_groups"] == other["param_groups"]


def interrupt_after(made: Runner, epochs: int, validate: Any, own: Runner) -> None:
    validate(own)
    if made.epoch == epochs:
        made.interrupt()


def test_training_logs_are_recorded_and_not_minimised() -> None:
    losses = Lightning(Classifier()).train_step((torch.randn(2, 4), torch.tensor([0, 1])))
    assert set(losses) == {"loss", "logged"}
    (metrics,) = runner(Classifier(), hooks=None).train()
    assert metrics["train/loss_of_part"] == pytest.approx(2 * metrics["train/loss"], rel=1e-5)


def test_the_hooks_of_a_module_are_called_in_order() -> None:
    called: list[str] = []

    class Watching(Classifier):
        pass

    names = ["on_fit_start", "on_train_start", "on_train_epoch_start", "on_train_epoch_end", "on_validation_start"]
    names += [
        "on_validation_epoch_start",
        "on_validation_end",
        "on_train_end",
        "on_fit_end",
        "setup",
        "configure_model",
    ]
    for name in names:
        setattr(Watching, name, lambda self, name=name, **_: called.append(name))
    Watching.on_train_batch_end = lambda self, outputs, batch, batch_idx: called.append("batch")
    runner(Watching(), sanity_check=False).train()
    epoch = ["on_train_epoch_start", "batch", "batch", "batch", "on_train_epoch_end", "on_validation_start"]
    epoch += ["on_validation_epoch_start", "on_validation_end"]
    assert called == ["configure_model", "setup", "on_fit_start", "on_train_start", *epoch * EPOCHS, *called[-2:]]
    assert called[-2:] == ["on_train_end", "on_fit_end"]


def test_nothing_of_a_run_stays_in_the_module(tmp_path: Path) -> None:
    made = runner(Classifier())
    made.train()
    model = made.model
    assert isinstance(model, Lightning)
    module: Any = model.module
    assert not {"log", "log_dict"} & set(module.__dict__)
    assert module._trainer is None
    again = pickle.loads(pickle.dumps(model))
    x = torch.randn(2, 4)
    assert torch.equal(again.eval()(x, mode="predict"), model.eval()(x, mode="predict"))
    assert again.schedulers == []


class Turns(Classifier):
    """Two optimizers, in turns on each batch."""

    def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Tensor:
        self.seen.append(str(optimizer_idx))
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net[0].parameters(), 0.1), torch.optim.SGD(self.net[3].parameters(), 0.2)


def test_several_optimizers_take_turns() -> None:
    module = Turns()
    made = runner(module, sanity_check=False)
    made.train()
    assert [each for each in module.seen if "." not in each] == ["0", "1"] * 12
    assert [group["lr"] for group in made.optimizer.param_groups] == [0.1, 0.2]


# -- what does not work ------------------------------------------------------------------------------------------------


class TwoWithoutTurns(Classifier):
    configure_optimizers = Turns.configure_optimizers


class Unscheduled(Classifier):
    def configure_optimizers(self) -> Any:
        made = torch.optim.SGD(self.parameters(), 0.1)
        return {"optimizer": made, "lr_scheduler": {"scheduler": ReduceLROnPlateau(made)}}


class MonitorOfOptimizer(Classifier):
    """The form in which Lightning reads the `monitor` of a scheduler without options."""

    def configure_optimizers(self) -> Any:
        made = torch.optim.SGD(self.parameters(), 0.1)
        plateau = ReduceLROnPlateau(made, factor=0.5, patience=0, threshold=1e9, threshold_mode="abs")
        return {"optimizer": made, "lr_scheduler": plateau, "monitor": "val_loss"}


class SchedulerAlone(Classifier):
    """A list of optimizers and one scheduler that is in no list."""

    def configure_optimizers(self) -> Any:
        made = torch.optim.SGD(self.parameters(), 0.1)
        return [made], StepLR(made, 1, 0.5)


@pytest.mark.parametrize(("kind", "halvings"), [(MonitorOfOptimizer, EPOCHS - 1), (SchedulerAlone, EPOCHS)])
def test_forms_of_a_scheduler(kind: Any, halvings: int, tmp_path: Path) -> None:
    theirs = kind()
    by_lightning(theirs, tmp_path)
    ours = runner(kind())
    ours.train()
    assert ours.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**halvings)
    assert theirs.optimizers().optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**halvings)


class InSetup(Classifier):
    def setup(self, stage: str) -> None:
        _ = self.trainer.estimated_stepping_batches


class OnTraining(Classifier):
    def configure_optimizers(self) -> Any:
        made = torch.optim.SGD(self.parameters(), 0.1)
        return {"optimizer": made, "lr_scheduler": {"scheduler": ReduceLROnPlateau(made), "monitor": "train_loss"}}


class Absent(Classifier):
    def configure_optimizers(self) -> Any:
        made = torch.optim.SGD(self.parameters(), 0.1)
        return {"optimizer": made, "lr_scheduler": {"scheduler": ReduceLROnPlateau(made), "monitor": "val_f1"}}


class Misspelled(Classifier):
    def configure_optimizers(self) -> Any:
        made = torch.optim.SGD(self.parameters(), 0.1)
        return {"optimizer": made, "lr_schedulers": StepLR(made, 3)}


class NoOptimizer(Classifier):
    def configure_optimizers(self) -> Any:
        return None


class Silent(Classifier):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def on_validation_epoch_end(self) -> None:
        pass


class NoLoss(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"logits": self(batch[0])}


class NoValidation(Classifier):
    validation_step = lightning.LightningModule.validation_step


class Loggers(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.logger.experiment.add_scalar("x", 1.0)


class OtherTrainer(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.trainer.datamodule


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            TwoWithoutTurns,
            r"it returns 2 optimizers. Expected one optimizer, because training_step has no argument optimizer_idx",
        ),
        (Unscheduled, "in a mapping with a `monitor`"),
        (OnTraining, "monitor: 'train_loss' is invalid. Expected a result of the validation"),
        (Absent, "^model.module.configure_optimizers.monitor: No metric named 'val/f1'"),
        (
            Misspelled,
            "configure_optimizers: 'lr_schedulers' is invalid. Expected a key of a mapping with an optimizer: "
            "optimizer, lr_scheduler, monitor. Did you mean 'lr_scheduler'",
        ),
        (NoOptimizer, "configure_optimizers: None is invalid"),
        (Silent, "Silent.validation_step logs nothing"),
        (NoLoss, "NoLoss.training_step returned a dict without a tensor under 'loss'. Return the loss as a tensor"),
        (NoValidation, r"NoValidation has no validation_step, .* Define it, or use data .* data.val_fraction=0\."),
        (Loggers, "self.logger is None in Trainyard, so 'experiment' is not available: use self.log"),
        (InSetup, r"is not known in configure_model and setup\(stage='fit'\). Read it in configure_optimizers"),
        (OtherTrainer, "self.trainer.datamodule: in Trainyard, the trainer of a LightningModule has only"),
    ],
)
def test_an_error_says_what_is_missing(kind: Any, message: str) -> None:
    with pytest.raises(TrainyardError, match=message):
        runner(kind()).train()


class AsksItsTrainer(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        trainer: Any = self.trainer
        found = hasattr(trainer, "datamodule"), getattr(trainer, "fast_dev_run", False), hasattr(trainer, "max_epochs")
        self.seen.append(str(found))
        return super().training_step(batch, batch_idx)


def test_a_module_can_ask_for_an_attribute_of_its_trainer() -> None:
    module = AsksItsTrainer()
    runner(module).train()
    assert module.seen[0] == "(False, False, True)"


class Manual(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class Backward(Classifier):
    def backward(self, loss: Any, *args: Any, **kwargs: Any) -> None:
        pass


class Ended(Classifier):
    def validation_step_end(self, outputs: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Ended, "Ended defines validation_step_end. .* Lightning 2 has no such method; move its code to the end"),
        (Manual, "Manual sets automatic_optimization = False"),
        (
            Backward,
            (
                "Backward defines backward. Expected a LightningModule without this method: the run performs "
                "the backward pass"
            ),
        ),
        (lambda: nn.Linear(2, 2), "'Linear' is invalid. Expected a LightningModule"),
        (lambda: 3, "'int' is invalid. Expected a LightningModule"),
    ],
)
def test_a_module_that_cannot_be_trained_is_refused(module: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Lightning(module())


def test_every_hook_of_lightning_is_called_or_refused() -> None:
    hooks = {name for kind in (ModelHooks, DataHooks, CheckpointHooks) for name in vars(kind) if name[0] != "_"}
    called = set()

    def noting(name: str) -> Any:
        return lambda self, *args, **kwargs: called.add(name)

    kind = type("Every", (Classifier,), {name: noting(name) for name in hooks - REFUSED.keys()})
    data, settings = loaders(), {"optim": ByModel(), "metrics": {"logged": Logged()}, "hooks": {}, "device": "cpu"}
    made = Runner(Lightning(kind()), data | {"test": data["val"]}, loop=EpochBasedTrainLoop(1), **settings)
    made.train()
    made.test()
    assert hooks - REFUSED.keys() == called


def test_another_metric_says_what_it_reads() -> None:
    with pytest.raises(TrainyardError, match="Accuracy: the outputs are"):
        runner(Classifier(), metrics={"accuracy": Accuracy()}).train()


class NoTest(Classifier):
    test_step = lightning.LightningModule.test_step


ON_RINGS = """
import torch
from lightning import LightningModule
from torch.nn.functional import cross_entropy


class NoTest(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(2, 2)

    def training_step(self, batch):
        return cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch):
        self.log("val_loss", cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)
"""


@pytest.mark.parametrize("flags", [[], ["-m"]])
def test_a_missing_test_step_is_reported_before_the_training(flags: list[str], tmp_path: Path) -> None:
    """Of a run, and of the jobs of a sweep."""
    (tmp_path / "mine.py").write_text(ON_RINGS)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(tmp_path), *sys.path]))}
    own = ["model=lightning", "model.module._target_=mine.NoTest", "data=rings", "data.num_samples=60", "tracker=none"]
    command = [sys.executable, str(ROOT / "train.py"), *flags, *own, "hydra.run.dir=run", "hydra.sweep.dir=run"]
    done = forked.run(command, cwd=tmp_path, env=environment, timeout=LIMIT)
    assert done.returncode == 2
    assert "NoTest has no test_step, which is required to evaluate 'test'" in " ".join(
        (done.stdout + done.stderr).split()
    )
    assert not (tmp_path / "run").exists()


def test_without_test_data_no_test_step_is_needed() -> None:
    made = runner(NoTest())
    check_test_step(made)
    data = loaders()
    with_test = Runner(Lightning(NoTest()), data | {"test": data["val"]}, loop=EpochBasedTrainLoop(1), device="cpu")
    with pytest.raises(TrainyardError, match="NoTest has no test_step"):
        check_test_step(with_test)
