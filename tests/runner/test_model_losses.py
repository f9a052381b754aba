"""Without a metric, the model's own losses are the validation."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainyard.data import Rings
from trainyard.errors import ConfigError
from trainyard.fused.runner import FusedRunner
from trainyard.hooks import Checkpoint, EarlyStopping
from trainyard.models import BaseModel
from trainyard.runner import EpochBasedTrainLoop, Runner
from trainyard.runner.hook import Hook


class Coder(BaseModel):
    """A model with two losses, of means over what is not zero in its input."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.layer = nn.Linear(2, width)
        self.back = nn.Linear(width, 2)

    def forward(self, x: Tensor, y: Tensor | None = None, mode: str = "tensor") -> Any:
        hidden = self.layer(x)
        if mode != "loss":
            return hidden
        error = ((self.back(hidden) - x) ** 2).mean(-1)
        counted = x[:, 0] > 0
        items = counted.sum()
        return {"loss_code": hidden.pow(2).mean(), "loss_back": (error * counted).sum() / items, "num_items": items}


def config(seed: int = 0, lr: float = 0.1, **others: Any) -> dict[str, Any]:
    return {
        "model": {"_target_": f"{__name__}.Coder"},
        "data": {"_target_": "trainyard.data.Rings", "num_samples": 130, "batch_size": 32, "eval_batch_size": 5},
        "optim": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": lr},
        "loop": {"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": 2},
        "hook": {},
        "device": "cpu",
        "seed": seed,
        **others,
    }


def expected(model: nn.Module, split: str) -> dict[str, float]:
    source: Any = Rings(num_samples=130).sources[split]
    x = source[0]
    items, sums = torch.tensor(0.0), {"loss_code": torch.tensor(0.0), "loss_back": torch.tensor(0.0)}
    for part in torch.as_tensor(x).split(5):
        losses = model.eval()(part, mode="loss")
        if losses["num_items"]:
            for key in sums:
                sums[key] = sums[key] + losses[key].detach() * losses["num_items"]
            items = items + losses["num_items"]
    means = {key: float(value / items) for key, value in sums.items()}
    return {f"{split}/{key}": value for key, value in (means | {"loss": sum(means.values())}).items()}


def test_each_loss_is_a_mean_over_its_items() -> None:
    runner = Runner.from_cfg(config())
    (found,) = runner.train()
    wanted = expected(runner.model, "val")
    assert {key: value for key, value in found.items() if key.startswith("val/")} == pytest.approx(wanted, rel=1e-5)
    assert runner.test()[0] == pytest.approx(expected(runner.model, "test"), rel=1e-5)
    assert runner.members[0].best is not None


def test_of_a_stack_each_member_has_its_own() -> None:
    configs = [config(seed, lr) for seed, lr in ((0, 0.1), (1, 0.01), (2, 0.0))]
    stacked = FusedRunner(configs).train()
    for own, together in zip(configs, stacked, strict=True):
        (alone,) = Runner.from_cfg(own).train()
        chosen = {key: value for key, value in alone.items() if key.startswith("val/")}
        assert {key: together[key] for key in chosen} == pytest.approx(chosen, rel=1e-4)


def test_best_checkpoint_early_stop_and_plateau_read_it(tmp_path: Path) -> None:
    schedule = {
        "_target_": "trainyard.schedules.Plateau",
        "factor": 0.5,
        "patience": 0,
    }
    hooks = {"checkpoint": Checkpoint(), "early_stop": EarlyStopping(patience=1, min_delta=100.0)}
    runner = Runner.from_cfg(config(schedule=schedule), hooks=hooks, work_dir=tmp_path, loop=EpochBasedTrainLoop(9))
    runner.train()
    assert runner.members[0].stop_reason is not None
    assert runner.epoch < 9
    assert (tmp_path / "checkpoints/best.pt").exists()


def test_an_unknown_objective_names_the_losses() -> None:
    with pytest.raises(ConfigError, match=r"objective.*val/loss_code, val/loss_back, val/loss"):
        Runner.from_cfg(config(objective="val/accuracy")).train()


class Written(Coder):
    def val_step(self, batch: Any) -> Any:
        return self.forward(batch[0])


def test_a_model_with_a_validation_of_its_own_keeps_it() -> None:
    runner = Runner.from_cfg(config(model={"_target_": f"{__name__}.Written"}))
    assert not runner.validates_by_loss
    assert runner.metrics == {}


def test_a_metric_takes_the_place_of_the_losses() -> None:
    class Mean(Coder):
        def val_step(self, batch: Any) -> Any:
            raise AssertionError

    runner = Runner.from_cfg(config(metric={"mse": {"_target_": "trainyard.metrics.MeanSquaredError"}}))
    assert not runner.validates_by_loss


class NeedsTarget(Coder):
    def forward(self, x: Tensor, *y: Tensor, mode: str = "tensor") -> Any:
        from trainyard.batch import target_of

        return super().forward(x, mode=mode) if mode != "loss" or target_of((x, *y)) is not None else None


class Outputs(Hook):
    seen: tuple[Any, ...] = ()

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        from trainyard.runner.model_losses import predictions

        self.seen = (outputs, predictions(runner, "test", data_batch, outputs))


def test_without_a_target_there_are_no_losses_but_predictions() -> None:
    hook = Outputs()
    data = {"_target_": "trainyard.data.ArrayData", "sources": {"test": [torch.ones(4, 2)]}, "spec": {}}
    model = {"_target_": f"{__name__}.NeedsTarget"}
    runner = Runner.from_cfg(config(model=model, data=data), hooks={"outputs": hook})
    assert runner.test() == [{}]
    assert hook.seen[0] is None
    assert hook.seen[1].shape == (4, 3)
