"""Optimizers that evaluate the loss themselves: LBFGS and SAM."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from trainyard.errors import ConfigError
from trainyard.hooks import Checkpoint, ParamSchedule
from trainyard.metrics import CrossEntropy
from trainyard.models import MLP
from trainyard.optim import SAM
from trainyard.runner import EpochBasedTrainLoop, Runner

LBFGS = partial(torch.optim.LBFGS, max_iter=4, history_size=5, line_search_fn="strong_wolfe")
MOMENTUM = partial(SAM, lr=0.1, rho=0.1, base=partial(torch.optim.SGD, momentum=0.9))


def runner(optim: Any, epochs: int = 2, folder: Path | None = None, **settings: Any) -> Runner:
    torch.manual_seed(0)
    x = torch.randn(32, 2)
    data = TensorDataset(x, (x.sum(1) > 0).long())
    return Runner(
        MLP(2, 2, [4]),
        {"train": DataLoader(data, 16), "val": DataLoader(data, 32)},
        optim,
        hooks={"checkpoint": Checkpoint(), "schedule": ParamSchedule()} if folder else {},
        metrics={"loss": CrossEntropy()},
        loop=EpochBasedTrainLoop(epochs),
        work_dir=folder,
        device="cpu",
        **settings,
    )


def by_hand(optim: Any, of: Runner, epochs: int = 2) -> Any:
    """The same training, as it is written without a Runner."""
    model = MLP(2, 2, [4])
    model.load_state_dict(of.model.state_dict())
    optimizer = optim(list(model.parameters()))
    for _ in range(epochs):
        for x, y in of.loader("train").batches(0, 0):

            def closure(x: Any = x, y: Any = y) -> Any:
                optimizer.zero_grad()
                loss = torch.nn.functional.cross_entropy(model.net(x), y)
                loss.backward()
                return loss

            optimizer.step(closure)
    return model


@pytest.mark.parametrize("optim", [LBFGS, MOMENTUM])
def test_a_step_is_that_of_the_optimizer_by_hand(optim: Any) -> None:
    run = runner(optim)
    run.prepare()
    expected = by_hand(optim, run)
    first = expected.state_dict()
    metrics = run.train()[0]
    for name, value in run.model.state_dict().items():
        torch.testing.assert_close(value, first[name], rtol=0, atol=0)
    assert metrics["val/loss"] < 0.69


@pytest.mark.parametrize("optim", [LBFGS, MOMENTUM])
def test_a_resumed_run_ends_with_the_same_bits(optim: Any, tmp_path: Path) -> None:
    whole = runner(optim, 4)
    whole.train()
    runner(optim, 2, tmp_path).train()
    resumed = runner(optim, 4, tmp_path, resume=True)
    resumed.train()
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value, rtol=0, atol=0)


def test_sam_shares_groups_and_state_with_its_base() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = MOMENTUM([weight])

    def closure() -> Any:
        weight.grad = None
        loss = weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    again = MOMENTUM([weight])
    again.load_state_dict(optimizer.state_dict())
    assert again.base.param_groups is again.param_groups
    assert again.base.state is again.state
    assert "momentum_buffer" in again.state[weight]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"accumulate": 2}, "accumulate: 2 is invalid. Expected 1 for LBFGS, whose step takes a closure"),
        ({"precision": "fp16"}, "precision: 'fp16' is invalid. Expected fp32, tf32 or bf16 for LBFGS"),
    ],
)
def test_what_does_not_go_with_a_closure(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        runner(LBFGS, **settings).prepare()


@pytest.mark.parametrize(("base", "name"), [(torch.optim.LBFGS, "LBFGS"), (partial(SAM, rho=0.1), "SAM")])
def test_sam_refuses_a_base_that_needs_a_closure(base: Any, name: str) -> None:
    message = rf"^optim\.base: '{name}' is invalid\. Expected an optimizer whose step needs no closure"
    with pytest.raises(ConfigError, match=message):
        runner(partial(SAM, base=base)).prepare()
