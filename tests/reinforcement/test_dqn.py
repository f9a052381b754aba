"""A loop without data: deep Q-learning in a small simulation, and in gymnasium's where that is installed."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainyard.errors import ConfigError
from trainyard.hooks import Checkpoint, EarlyStopping, Logger, ParamSchedule
from trainyard.models import BaseModel
from trainyard.reinforcement import DQN, DQNLoop, ReplayMemory
from trainyard.reinforcement.memory import FIELDS
from trainyard.runner import Runner, SimulationTrainLoop
from trainyard.schedules import Schedule


class Corridor:
    """Five places, of which the last is the goal; each step costs, and luck that follows from the seed may hold one."""

    action_space = SimpleNamespace(n=2)

    def reset(self, seed: int) -> tuple[list[float], dict[str, Any]]:
        self.luck = torch.Generator().manual_seed(seed)
        self.place, self.steps = 0, 0
        return self._seen(), {}

    def step(self, action: int) -> tuple[list[float], float, bool, bool, dict[str, Any]]:
        held = torch.rand((), generator=self.luck).item() < 0.1
        self.place = self.place if held else max(0, self.place + (1 if action else -1))
        self.steps += 1
        goal = self.place == 4
        return self._seen(), 1.0 if goal else -0.1, goal, self.steps >= 30, {}

    def _seen(self) -> list[float]:
        return [float(self.place == place) for place in range(5)]


class Values(BaseModel):
    """A model with the values of two actions, but without a network that follows."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(5, 2)

    def forward(self, observation: Tensor, mode: str = "tensor", **more: Any) -> Any:
        out = self.net(observation)
        return {"loss": out.square().mean()} if mode == "loss" else out


def runner(
    folder: Path | None, environment: Any = Corridor, inputs: int = 5, iters: int = 60, **settings: Any
) -> Runner:
    torch.manual_seed(0)
    loop = DQNLoop(
        iters, environment, val_interval=20, memory=50, warm_up=20, batch_size=8, exploration_iters=40, episodes=2
    )
    settings = {"hooks": {"logger": Logger(), "checkpoint": Checkpoint(interval=15, max_keep=9)}} | settings
    return Runner(
        settings.pop("model", None) or DQN(nn.Linear(inputs, 2)),
        optim=partial(torch.optim.Adam, lr=0.05),
        loop=loop,
        work_dir=folder,
        objective="val/return",
        direction="maximize",
        device="cpu",
        **settings,
    )


def test_it_learns_the_way() -> None:
    made = runner(None, iters=200, hooks={})
    (metrics,) = made.train()
    assert metrics["val/return"] > 0
    assert (made.iter, made.epoch) == (200, 1)


def gymnasium_environment() -> Any:
    return partial(pytest.importorskip("gymnasium").make, "CartPole-v1")


@pytest.mark.parametrize(("environment", "inputs"), [(lambda: Corridor, 5), (gymnasium_environment, 4)])
def test_it_resumes_exactly_with_its_memory(environment: Any, inputs: int, tmp_path: Path) -> None:
    """The checkpoint of iteration 30 lies within an episode, with a memory that has come round."""
    whole = runner(tmp_path / "whole", environment(), inputs)
    whole.train()
    (saved,) = (tmp_path / "whole" / "checkpoints").glob("*30.pt")
    parts = runner(tmp_path / "parts", environment(), inputs, resume=saved)
    parts.train()
    loops: Any = (whole.train_loop, parts.train_loop)
    states = [loop.memory.state_dict() for loop in loops]
    assert states[0]["count"] == states[1]["count"] == 20 + 60
    for name, column in states[0]["columns"].items():
        assert torch.equal(column, states[1]["columns"][name]), name
    assert loops[0].state_dict()["episodes"] == loops[1].state_dict()["episodes"]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, parts.model.state_dict()[name])
    assert whole.members[0].metrics["val/return"] == parts.members[0].metrics["val/return"]


def test_the_memory_keeps_the_latest() -> None:
    memory = ReplayMemory(3)
    for number in range(5):
        memory.add(**{name: torch.tensor(float(number)) for name in FIELDS})
    assert len(memory) == 3
    assert set(memory.sample(50, torch.device("cpu"))["reward"].tolist()) == {2.0, 3.0, 4.0}
    other = ReplayMemory(3)
    other.load_state_dict(memory.state_dict())
    assert torch.equal(other.state_dict()["columns"]["reward"], memory.state_dict()["columns"]["reward"])


def test_the_loss_is_that_of_double_q_learning() -> None:
    model = DQN(nn.Linear(2, 2, bias=False), discount=0.5)
    with torch.no_grad():
        model.net.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        model.target.weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 7.0]]))
    batch = {
        "observation": torch.tensor([[0.5, 0.0]]),
        "action": torch.tensor([0]),
        "reward": torch.tensor([-2.0]),
        "following": torch.tensor([[1.0, 0.5]]),  # the net prefers action 0, which the target values at 3
        "done": torch.tensor([0.0]),
    }
    assert model.train_step(batch)["loss"].item() == pytest.approx(0.5 - (-2 + 0.5 * 3) - 0.5)


def test_an_environment_of_other_actions() -> None:
    class Three(Corridor):
        action_space = SimpleNamespace(n=3)

    with pytest.raises(ConfigError, match=r"model: the net has 2 outputs. Expected 3 outputs, one for each action"):
        runner(None, Three).train()

    class Continuous(Corridor):
        action_space = SimpleNamespace(low=-1.0, high=1.0)

    with pytest.raises(ConfigError, match=r"environment: its action_space is a SimpleNamespace. Expected discrete"):
        runner(None, Continuous).train()


@pytest.mark.parametrize("sanity_check", [True, False])
def test_a_model_that_is_no_dqn(sanity_check: bool) -> None:
    made = runner(None, sanity_check=sanity_check, model=Values())
    with pytest.raises(ConfigError, match=r"^model: 'Values' is invalid\. Expected a trainyard\.reinforcement\.DQN"):
        made.train()


# -- the base class ----------------------------------------------------------------------------------------------------


class Fit(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, mode: str = "tensor") -> Any:
        return {"loss": (self.weight - x).square()} if mode == "loss" else self.weight


class Drawn(SimulationTrainLoop):
    """Draws its batches."""

    results = ("distance",)

    def next_batch(self, runner: Runner) -> Tensor:
        return torch.randn(()) * 0.1 + 1

    def evaluate(self, runner: Runner) -> dict[str, float]:
        assert not runner.eval_model.training
        return {"distance": abs(runner.eval_model.weight.item() - 1)}


def fitted(folder: Path | None = None, **settings: Any) -> Runner:
    settings = {"objective": "val/distance"} | settings
    made = Runner(Fit(), loop=Drawn(12, val_interval=4), work_dir=folder, device="cpu", **settings)
    made.train()
    return made


def test_a_run_without_data_has_schedules_hooks_and_early_stopping(tmp_path: Path) -> None:
    schedule = Schedule(partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max="auto"), by="iter")
    hooks = {
        "schedule": ParamSchedule(),
        "early_stop": EarlyStopping(patience=1, min_delta=10.0),
        "log": Logger(interval=1),
    }
    made = fitted(tmp_path / "run", optim=partial(torch.optim.SGD, lr=0.3), schedule=schedule, hooks=hooks)
    assert made.iter == 8
    assert made.learning_rates()[0] < 0.3


def test_an_objective_that_the_loop_does_not_give() -> None:
    with pytest.raises(ConfigError, match=r"objective: No metric named 'val/loss'. This run computes val/distance"):
        fitted(optim=partial(torch.optim.SGD, lr=0.3), objective="val/loss")


def test_any_other_loop_asks_for_data() -> None:
    from trainyard.runner import EpochBasedTrainLoop

    with pytest.raises(ConfigError, match=r"data: None is invalid. Expected data with the split train"):
        Runner(Fit(), loop=EpochBasedTrainLoop(1), optim=partial(torch.optim.SGD, lr=0.3), device="cpu").train()
