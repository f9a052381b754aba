"""Small trainings by the step alone, captured or not."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from trainyard.models import CNN, MLP, Transformer
from trainyard.optim import Lion
from trainyard.schedules import Schedule
from trainyard.step.clip import make_clip
from trainyard.step.cuda_graph import captured_step
from trainyard.step.cuda_graph.captured_step import CapturedStep
from trainyard.step.precision import make_precision
from trainyard.step.step import make_step


def pictures(count: Any) -> Any:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 1, 8, 8, generator=generator), torch.randint(3, (count,), generator=generator)


def words(count: Any) -> Any:
    tokens = torch.randint(7, (count, 6), generator=torch.Generator().manual_seed(1))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


MODELS = {
    "mlp": (partial(MLP, in_features=64, num_classes=3, hidden=[8], dropout=0.2), pictures),
    "cnn": (partial(CNN, in_channels=1, num_classes=3, channels=[4]), pictures),
    "transformer": (partial(Transformer, vocab_size=7, context_length=5, dim=8, layers=1, heads=2), words),
}
OPTIMS = {
    "sgd": partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01, fused=True),
    "adam": partial(torch.optim.Adam, lr=2e-3, fused=True),
    "adam foreach": partial(torch.optim.Adam, lr=2e-3, foreach=True),
    "adamw": partial(torch.optim.AdamW, lr=2e-3, amsgrad=True, fused=True),
    "rmsprop": partial(torch.optim.RMSprop, lr=1e-3, centered=True, momentum=0.5, foreach=True),
    "adagrad": partial(torch.optim.Adagrad, lr=1e-2, lr_decay=1e-3, fused=True),
    "nadam": partial(torch.optim.NAdam, lr=2e-3, foreach=True),
    "radam": partial(torch.optim.RAdam, lr=2e-3, weight_decay=0.01, foreach=True),
    "adamax": partial(torch.optim.Adamax, lr=2e-3, foreach=True),
    "lion": partial(Lion, lr=3e-4, weight_decay=0.1),
}
UNCAPTURABLE = {
    "sgd foreach": partial(torch.optim.SGD, lr=0.05, momentum=0.9, foreach=True),
    "adagrad foreach": partial(torch.optim.Adagrad, lr=1e-2, foreach=True),
    "adam one by one": partial(torch.optim.Adam, lr=2e-3, foreach=False),
    "adadelta": partial(torch.optim.Adadelta, lr=0.5),
}
"""Optimizers that step outside of the graph."""
SCHEDULES = {
    "constant": None,
    "cosine": partial(CosineAnnealingLR, T_max="auto"),
    "onecycle": partial(OneCycleLR, max_lr="auto", total_steps="auto", cycle_momentum="auto"),
}


def batches_of(data: Any, batch: Any, epochs: Any, device: Any, samples: int = 45) -> Any:
    """Those of a few epochs; the last of each is smaller."""
    x, y = (part.to(device) if isinstance(part, torch.Tensor) else part for part in data(samples))
    epoch = [(x[first : first + batch], y[first : first + batch]) for first in range(0, samples, batch)]
    return [epoch] * epochs


def step_of(
    model: Any, optimizer: Any, *, accumulate: int = 1, clip: Any = (None, None), precision: str = "fp32"
) -> Any:
    return make_step(
        model.train_step,
        optimizer,
        precision=make_precision(precision, optimizer.param_groups[0]["params"][0].device),
        clip=make_clip(*clip),
        accumulate=accumulate,
    )


def drive(
    how: Any,
    model: Any,
    optim: Any,
    data: Any,
    *,
    schedule: Any = None,
    epochs: int = 3,
    batch: int = 6,
    device: str = "cpu",
    **settings: Any,
) -> Any:
    """Train with a step as it is (None), one that is captured (a graph); returns all that there is at the end."""
    torch.manual_seed(0)
    model = model().to(device)
    optimizer = optim(model.parameters())
    step = step_of(model, optimizer, **settings)
    if how is not None:
        step = CapturedStep(step, how, dict(model.named_modules()))
    epochs = batches_of(data, batch, epochs, device)
    rows = Schedule(SCHEDULES[schedule]) if schedule else None
    if rows is not None:
        rows.bind(optimizer, length=sum(map(len, epochs)))  # type: ignore[call-overload]
        if how is not None:
            step.foresee(lambda: rows.ahead(iteration))  # type: ignore[has-type]
    outputs, iteration = [], 0
    for epoch in epochs:  # type: ignore[attr-defined]
        for position, data_batch in enumerate(epoch):
            for group, row in zip(optimizer.param_groups, rows.row(iteration) if rows else [], strict=False):
                group.update(row)
            outputs.append(step(data_batch, position, len(epoch)))
            iteration += 1
    losses = torch.stack([output["loss"] for output in outputs])
    norms = torch.stack(
        [output["grad_norm"] for output in outputs if "grad_norm" in output] or [torch.zeros((), device=device)]
    )
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "losses": losses, "norms": norms}
    return step, state | {"step": step.state_dict()["precision"]}


def same(found: Any, expected: Any, close: Any = None, path: str = "") -> None:
    """The same nest of the same bits; or, of numbers, as close as asked."""
    if isinstance(expected, torch.Tensor):
        assert (found.dtype, found.device, found.shape) == (expected.dtype, expected.device, expected.shape), path
        if close is None:
            assert torch.equal(found, expected), path
        else:
            torch.testing.assert_close(found, expected, rtol=close, atol=close)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), path
        for key in expected:
            same(found[key], expected[key], close, f"{path}.{key}")
    elif isinstance(expected, list | tuple):
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            same(one, other, close, f"{path}[{index}]")
    else:
        assert found == expected, path


def warmed_up(monkeypatch: pytest.MonkeyPatch, graph: Any, model: Any, optim: Any, data: Any, **settings: Any) -> Any:
    """As `drive`, by the steps before a capture, which never comes."""
    with monkeypatch.context() as patch:
        patch.setattr(captured_step, "WARM_UP", 10**9)
        return drive(graph, model, optim, data, **settings)[1]
