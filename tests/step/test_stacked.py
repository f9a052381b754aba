"""Clipping and the gradient scaler of stacked members do to each what they would do to it alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainyard.data import Rings
from trainyard.errors import ConfigError
from trainyard.fused.model import StackedModel
from trainyard.fused.optim import stack_optimizers
from trainyard.models import MLP
from trainyard.optim import build
from trainyard.step.clip import ClipGradNorm, NoClip
from trainyard.step.precision import Precision, ScaledAutocast
from trainyard.step.stacked import StackedClipGradNorm, StackedScaledAutocast
from trainyard.step.step import Step, make_step

CPU = torch.device("cpu")
K = 4
SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
ADAM = partial(torch.optim.Adam, lr=0.01)


class Scaled(MLP):
    """A network whose loss is multiplied by a number of its own: a large one overflows float16."""

    def __init__(self, seed: int, factor: float) -> None:
        torch.manual_seed(seed)
        super().__init__(in_features=2, num_classes=2, hidden=[12])
        self.register_buffer("factor", torch.tensor(factor))

    def train_step(self, batch: Any) -> dict[str, Tensor]:
        losses = super().train_step(batch)
        return {**losses, "loss": losses["loss"] * self.factor}


def models(factors: Sequence[float]) -> list[nn.Module]:
    return [Scaled(seed, factor) for seed, factor in enumerate(factors)]


def batches() -> list[Any]:
    return list(Rings(num_samples=200, batch_size=16, val_fraction=0).loader("train", seed=0, device=CPU).batches())


def solo_steps(factors: Sequence[float], optim: Any, precision: Any, clips: Any, accumulate: int = 1) -> list[Step]:
    steps = []
    for model, clip in zip(models(factors), clips or [None] * len(factors), strict=True):
        clipped = NoClip() if clip is None else ClipGradNorm(clip)
        optimizer = build(optim, model.parameters())
        steps.append(make_step(model.train_step, optimizer, precision=precision(), clip=clipped, accumulate=accumulate))
    return steps


def stacked_step(
    factors: Sequence[float], optim: Any, precision: Precision, clips: Any, accumulate: int = 1
) -> tuple[StackedModel, Step]:
    solos = models(factors)
    stack = StackedModel(solos)
    parameters = dict(zip(solos[0].parameters(), stack.parameters(), strict=True))
    optimizer = stack_optimizers([build(optim, solo.parameters()) for solo in solos], parameters)
    clip = NoClip() if clips is None else StackedClipGradNorm(clips)
    return stack, make_step(
        stack.train_step, optimizer, precision=precision, clip=clip, accumulate=accumulate, stacked=True
    )


def assert_follows(stack: StackedModel, steps: Sequence[Step], rtol: float) -> None:
    for solo, step in zip(stack.models, steps, strict=True):
        for own, alone in zip(solo.parameters(), step.parameters, strict=True):
            torch.testing.assert_close(own, alone, rtol=rtol, atol=rtol)


def run(
    step: Step, stack: StackedModel, steps: Sequence[Step], rtol: float, given: Sequence[Any] | None = None
) -> None:
    given = batches() if given is None else given
    for position, batch in enumerate(given):
        outputs = step(batch, position, len(given))
        wanted = [solo(batch, position, len(given)) for solo in steps]
        for key, value in outputs.items():
            expected = torch.stack([own[key] for own in wanted])
            assert value.shape == expected.shape
            finite = expected.isfinite()
            torch.testing.assert_close(value[finite], expected[finite], rtol=max(rtol, 1e-6), atol=1e-6)
            assert torch.equal(value.isfinite(), finite)
        assert_follows(stack, steps, rtol)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("optim", [SGD, ADAM])
def test_clipping_is_per_member(optim: Any, accumulate: int) -> None:
    factors, clips = (1.0, 5.0, 0.1, 30.0), (0.5, 2.0, 100.0, 1e-3)
    steps = solo_steps(factors, optim, Precision, clips, accumulate)
    stack, step = stacked_step(factors, optim, Precision(), clips, accumulate)
    run(step, stack, steps, 1e-5)


def test_clipping_to_the_numbers_of_torch() -> None:
    grads = [torch.randn(K, 3, 2), torch.randn(K), torch.randn(K, 0), torch.randn(K, 7)]
    parameters = [nn.Parameter(torch.zeros_like(grad)) for grad in grads]
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = grad.clone()
    parameters[3].grad[2] = torch.nan
    max_norms = [0.1, 1.0, 2.0, 1e9]
    clip = StackedClipGradNorm(max_norms)
    norms = clip([*parameters, nn.Parameter(torch.zeros(K, 5))])["grad_norm"]
    for k, max_norm in enumerate(max_norms):
        own = [nn.Parameter(torch.zeros_like(grad[k])) for grad in grads]
        for parameter, grad in zip(own, grads, strict=True):
            parameter.grad = grad[k].clone()
        if k == 2:
            own[3].grad.fill_(torch.nan)
        torch.testing.assert_close(norms[k], nn.utils.clip_grad_norm_(own, max_norm), equal_nan=True)
        for parameter, alone in zip(parameters, own, strict=True):
            torch.testing.assert_close(parameter.grad[k], alone.grad, equal_nan=True)

    clip.keep(torch.tensor([3, 0]))
    left = nn.Parameter(torch.zeros(2, 5))
    left.grad = torch.ones(2, 5)
    clip([left])
    assert torch.equal(left.grad[0], torch.ones(5))
    torch.testing.assert_close(left.grad[1].norm(), torch.tensor(0.1))
    assert clip([nn.Parameter(torch.zeros(2))])["grad_norm"].tolist() == [0, 0]


@pytest.mark.parametrize("wrong", [0, -1.0, float("nan")])
def test_a_norm_that_cannot_work(wrong: float) -> None:
    with pytest.raises(ConfigError, match="clip_grad_norm"):
        StackedClipGradNorm([1.0, wrong])


# Scales from which the members begin: a growth is due in the first few steps.
SCALES = (2.0**10, 2.0**16, 2.0**4, 2.0**12)


def state_of(scale: float, tracker: int = 0) -> dict[str, Any]:
    return {
        "scale": scale,
        "growth_factor": 2.0,
        "backoff_factor": 0.5,
        "growth_interval": 4,
        "_growth_tracker": tracker,
    }


def fp16(
    factors: Sequence[float], optim: Any, clips: Any, accumulate: int = 1
) -> tuple[list[Step], StackedModel, Step, StackedScaledAutocast]:
    """K solo runs and their stack, all with scales that differ."""
    steps = solo_steps(factors, optim, partial(ScaledAutocast, CPU), clips, accumulate)
    precision = StackedScaledAutocast(CPU, len(factors))
    stack, step = stacked_step(factors, optim, precision, clips, accumulate)
    for k, (solo, scale) in enumerate(zip(steps, SCALES, strict=False)):
        solo.precision.load_state_dict(state_of(scale, k))
        precision.load_member_state_dict(k, state_of(scale, k))
    return steps, stack, step, precision


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("clips", [None, (0.5, 0.1, 9.0, 1.0)])
@pytest.mark.parametrize("optim", [SGD, ADAM])
def test_each_member_has_its_own_scaler(optim: Any, clips: Any, accumulate: int) -> None:
    # The second overflows until its scale is low enough, the third grows without an end to it.
    factors = (1.0, 300.0, 1.0, 1.0)
    steps, stack, step, precision = fp16(factors, optim, clips, accumulate)
    skipped = 0
    for position, batch in enumerate(batches()):
        before = [precision.member_state_dict(k)["scale"] for k in range(K)]
        step(batch, position, 999)
        for solo in steps:
            solo(batch, position, 999)
        after = [precision.member_state_dict(k)["scale"] for k in range(K)]
        skipped += after[1] < before[1]
        assert after[0] >= before[0]
        assert after[2] >= before[2]
        for k, solo in enumerate(steps):
            assert precision.member_state_dict(k) == solo.precision.state_dict()
        # A product of float16 is rounded at other places in a batched kernel.
        assert_follows(stack, steps, 5e-3)
    assert skipped > 0
    assert precision.member_state_dict(2)["scale"] > SCALES[2]


def test_a_member_that_overflows_stays_where_it_is() -> None:
    _, stack, step, precision = fp16((1.0, 1e9, 1.0), ADAM, None)
    before = [[parameter.clone() for parameter in solo.parameters()] for solo in stack.models]
    for position, batch in enumerate(batches()[:3]):
        step(batch, position, 3)
    for k, solo in enumerate(stack.models):
        moved = [not torch.equal(new, old) for new, old in zip(solo.parameters(), before[k], strict=True)]
        assert all(moved) == any(moved) == (k != 1)
        assert all(parameter.isfinite().all() for parameter in solo.parameters())
    assert precision.member_state_dict(1)["scale"] == SCALES[1] / 8
    assert step.optimizer.member_state_dict(1)["state"] == {}  # type: ignore[attr-defined] # it never took a step


def test_a_nan_of_one_member_is_its_own() -> None:
    _, stack, step, precision = fp16((1.0, float("nan"), 1.0), SGD, (1.0, 1.0, 1.0))
    outputs = step(batches()[0], 0, 1)
    assert outputs["loss"].isnan().tolist() == outputs["grad_norm"].isnan().tolist() == [False, True, False]
    assert [precision.member_state_dict(k)["scale"] for k in range(3)] == [SCALES[0], SCALES[1] / 2, SCALES[2]]
    assert all(parameter.isfinite().all() for parameter in stack.parameters())


def test_keep_leaves_the_others_as_they_were() -> None:
    steps, stack, step, precision = fp16((1.0, 1e9, 300.0, 1.0), SGD, (0.5, 0.1, 9.0, 1.0))
    for position, batch in enumerate(batches()):
        if position == 3:
            left = [3, 0, 2]
            stack.keep(left)
            for part in (step.optimizer, precision, step.clip):
                part.keep(torch.tensor(left))
            steps = [steps[k] for k in left]
        step(batch, position, 999)
        for solo in steps:
            solo(batch, position, 999)
        assert_follows(stack, steps, 5e-3)
    assert [precision.member_state_dict(k) for k in range(3)] == [solo.precision.state_dict() for solo in steps]


def test_states_are_those_of_a_gradient_scaler() -> None:
    new, precision = ScaledAutocast(CPU).state_dict(), StackedScaledAutocast(CPU, 2)
    assert precision.member_state_dict(1) == new
    assert [type(value) for value in precision.member_state_dict(1).values()] == [type(v) for v in new.values()]

    odd = {"scale": 3.0, "growth_factor": 1.1, "backoff_factor": 0.3, "growth_interval": 7, "_growth_tracker": 6}
    precision.load_member_state_dict(1, odd)
    precision.load_member_state_dict(1, {})  # of a run in another precision: nothing changes
    assert [precision.member_state_dict(k) for k in range(2)] == [new, odd]
    scaler = torch.amp.GradScaler("cpu")
    scaler.load_state_dict(precision.member_state_dict(1))
    assert scaler.state_dict() == odd

    class Skipping(torch.optim.SGD):
        def step(self, skip: Tensor) -> None:
            assert skip.tolist() == [False, False]

    parameter = nn.Parameter(torch.ones(2, 1))
    parameter.grad = torch.ones(2, 1)
    precision.step(Skipping([parameter]), lambda: None)
    solo = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([solo])
    scaler.scale(solo.sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert precision.member_state_dict(1) == scaler.state_dict()
    assert scaler.get_scale() == pytest.approx(3.3)


def test_a_scale_does_not_grow_past_float32() -> None:
    precision = StackedScaledAutocast(CPU, 1)
    precision.load_member_state_dict(0, {**state_of(3e38, 3)})
    parameter = nn.Parameter(torch.ones(1, 1))
    parameter.grad = torch.ones(1, 1)
    stacked = stack_optimizers([SGD([parameter_of := nn.Parameter(torch.ones(1))])], {parameter_of: parameter})
    precision.step(stacked, lambda: None)
    assert precision.member_state_dict(0)["scale"] == pytest.approx(3e38)
    assert precision.member_state_dict(0)["_growth_tracker"] == 0


def test_gradients_are_unscaled_once() -> None:
    precision = StackedScaledAutocast(CPU, 2)
    parameter, halves = (nn.Parameter(torch.ones(2, 3, dtype=dtype)) for dtype in (torch.float32, torch.float16))
    parameter.grad, halves.grad = torch.full((2, 3), 2.0**17), torch.ones(2, 3, dtype=torch.float16)
    optimizer = torch.optim.SGD([parameter])
    for _ in range(2):
        precision.unscale(optimizer)
        assert torch.equal(parameter.grad, torch.full((2, 3), 2.0))
    with pytest.raises(ValueError, match="FP16"):
        StackedScaledAutocast(CPU, 2).unscale(torch.optim.SGD([halves]))


@pytest.mark.parametrize("odd", [torch.inf, -torch.inf, torch.nan])
def test_any_number_that_is_not_finite_is_found(odd: float) -> None:
    shapes = ((3, 5, 2), (3,), (3, 0), (3, 9))
    parameters = [nn.Parameter(torch.ones(shape)) for shape in shapes]
    wide = nn.Parameter(torch.ones(3, 2, dtype=torch.float64))
    for hit in (0, 1, 3):
        precision = StackedScaledAutocast(CPU, 3)
        for parameter in (*parameters, wide):
            parameter.grad = torch.ones_like(parameter)
        wide.grad.fill_(1e300)  # finite, though not in float32
        parameters[hit].grad[1].view(-1)[-1] = odd
        precision.unscale(torch.optim.SGD([*parameters, wide]))
        skipped: list[Tensor] = []

        class Noted(torch.optim.SGD):
            def step(self, skip: Tensor, into: list[Tensor] = skipped) -> None:
                into.append(skip)

        precision.step(Noted([wide]), lambda: None)
        assert skipped[0].tolist() == [False, True, False]
