"""Stacked optimizers follow the solo ones, number for number."""

import math
from typing import Any

import pytest
import torch

from trainyard.errors import Unfusable
from trainyard.optim import Lion

MEMBERS = 4
OPTIM = torch.optim


def each(**numbers: Any) -> Any:
    """The keyword arguments of each member, from those that differ (lists of four) and those that do not."""
    return [{k: v[i] if isinstance(v, list) else v for k, v in numbers.items()} for i in range(MEMBERS)]


LRS = [1e-3, 3e-3, 1e-2, 2e-2]
DECAYS = [0.0, 1e-2, 0.1, 0.3]
BETAS = [(0.9, 0.999), (0.8, 0.99), (0.95, 0.9), (0.0, 0.5)]
EPS = [1e-8, 1e-6, 1e-3, 1e-1]
CASES = {
    "sgd": (OPTIM.SGD, each(lr=LRS)),
    "sgd_alike": (OPTIM.SGD, each(lr=0.1, momentum=0.9)),
    "sgd_momentum": (OPTIM.SGD, each(lr=LRS, momentum=[0.9, 0.5, 0.99, 0.1], weight_decay=DECAYS)),
    "sgd_some_momentum": (OPTIM.SGD, each(lr=LRS, momentum=[0.0, 0.9, 0.0, 0.5], weight_decay=DECAYS)),
    "sgd_dampening": (OPTIM.SGD, each(lr=LRS, momentum=[0.0, 0.9, 0.9, 0.5], dampening=[0.0, 0.3, 0.0, 0.9])),
    "sgd_nesterov": (OPTIM.SGD, each(lr=LRS, momentum=[0.9, 0.5, 0.99, 0.1], nesterov=True, maximize=True)),
    "sgd_fused": (OPTIM.SGD, each(lr=LRS, momentum=0.9, weight_decay=DECAYS, fused=True)),
    "adam": (OPTIM.Adam, each(lr=LRS)),
    "adam_alike": (OPTIM.Adam, each(lr=1e-2, weight_decay=0.1, fused=True)),
    "adam_fused": (OPTIM.Adam, each(lr=LRS, weight_decay=DECAYS, fused=True)),
    "adam_betas": (OPTIM.Adam, each(lr=LRS, betas=BETAS, eps=EPS, weight_decay=DECAYS)),
    "adam_amsgrad": (OPTIM.Adam, each(lr=LRS, amsgrad=True, maximize=True, weight_decay=DECAYS)),
    "adam_amsgrad_betas": (OPTIM.Adam, each(lr=LRS, betas=BETAS, amsgrad=True, maximize=True)),
    "adam_decoupled": (OPTIM.Adam, each(lr=LRS, weight_decay=DECAYS, decoupled_weight_decay=True)),
    "adamw": (OPTIM.AdamW, each(lr=LRS, weight_decay=DECAYS, fused=True)),
    "adamw_alike": (OPTIM.AdamW, each(lr=1e-2, maximize=True, fused=True)),
    "adamw_betas": (OPTIM.AdamW, each(lr=LRS, betas=BETAS, weight_decay=DECAYS, amsgrad=True)),
    "rmsprop": (OPTIM.RMSprop, each(lr=LRS, alpha=[0.99, 0.9, 0.5, 0.0], eps=EPS)),
    "rmsprop_momentum": (OPTIM.RMSprop, each(lr=LRS, momentum=[0.0, 0.9, 0.5, 0.0], weight_decay=DECAYS)),
    "rmsprop_centered": (OPTIM.RMSprop, each(lr=LRS, centered=True, maximize=True, momentum=[0.9, 0.0, 0.5, 0.1])),
    "rmsprop_centered_only": (OPTIM.RMSprop, each(lr=LRS, centered=True, eps=1e-4)),
    "adagrad": (OPTIM.Adagrad, each(lr=LRS, fused=True)),
    "adagrad_alike": (OPTIM.Adagrad, each(lr=0.1, lr_decay=0.1, weight_decay=0.1, fused=True, maximize=True)),
    "adagrad_decay": (OPTIM.Adagrad, each(lr=LRS, lr_decay=[0, 0.1, 0.5, 1.0], weight_decay=DECAYS)),
    "adagrad_initial": (OPTIM.Adagrad, each(lr=LRS, initial_accumulator_value=[0, 0.1, 1.0, 2.0], eps=EPS)),
    "nadam": (OPTIM.NAdam, each(lr=LRS, betas=BETAS, eps=EPS, weight_decay=DECAYS)),
    "nadam_decoupled": (
        OPTIM.NAdam,
        each(lr=LRS, momentum_decay=[4e-3, 0, 0.1, 1.0], decoupled_weight_decay=True, weight_decay=DECAYS),
    ),
    "nadam_maximize": (OPTIM.NAdam, each(lr=LRS, maximize=True)),
    "radam": (OPTIM.RAdam, each(lr=LRS, betas=BETAS, eps=EPS, weight_decay=DECAYS)),
    "radam_decoupled": (OPTIM.RAdam, each(lr=LRS, decoupled_weight_decay=True, weight_decay=DECAYS, maximize=True)),
    "adamax": (OPTIM.Adamax, each(lr=LRS, betas=BETAS, eps=EPS, weight_decay=DECAYS)),
    "adamax_maximize": (OPTIM.Adamax, each(lr=LRS, maximize=True)),
    "lion": (Lion, each(lr=LRS, betas=BETAS, weight_decay=DECAYS)),
    "lion_maximize": (Lion, each(lr=LRS, maximize=True)),
}


@pytest.mark.parametrize("case", CASES)
def test_sixty_steps_in_float64(case: Any, pair: Any) -> None:
    pair = pair(*CASES[case])
    before = [param.detach().clone() for param in pair.stacked]
    pair.steps(60)
    assert pair.distance() < 1e-12
    assert all((param != old).any() for param, old in zip(pair.stacked, before, strict=True))
    pair.check_states()


@pytest.mark.parametrize("case", CASES)
def test_sixty_steps_in_float32(case: Any, pair: Any) -> None:
    pair = pair(*CASES[case], dtype=torch.float32)
    pair.steps(60)
    assert pair.distance() < 2e-5
    pair.check_states(1e-4)


@pytest.mark.parametrize("case", CASES)
def test_a_schedule_writes_numbers_between_steps(case: Any, pair: Any) -> None:
    pair = pair(*CASES[case])
    pair.steps(1)
    for step in range(12):
        rates = torch.tensor([0.01, 0.02, 0.001, 0.1], dtype=torch.float64) / (1 + step // 3)
        pair.write(lr=rates, weight_decay=torch.full((MEMBERS,), 0.01 * (step > 6), dtype=torch.float64))
        if "betas" in pair.optimizer.param_groups[0] and step == 4:
            pair.write(betas=(rates * 5, 1 - rates))
        pair.steps(2)
    assert pair.distance() < 1e-12
    pair.check_states()


def test_a_momentum_that_goes_and_comes_back(pair: Any) -> None:
    pair = pair(*CASES["sgd_momentum"])
    pair.steps(3)
    for momentum in ([0.0, 0.9, 0.0, 0.5], [0.0, 0.0, 0.0, 0.0], [0.9, 0.0, 0.0, 0.5], [0.9, 0.5, 0.9, 0.9]):
        pair.write(momentum=torch.tensor(momentum, dtype=torch.float64))
        pair.steps(3)
    assert pair.distance() < 1e-12
    pair.check_states()


@pytest.mark.parametrize("case", CASES)
def test_keep_cuts_members_in_the_middle(case: Any, pair: Any) -> None:
    pair = pair(*CASES[case])
    pair.steps(7)
    pair.keep([3, 1])
    pair.steps(7)
    pair.write(lr=torch.tensor([0.01, 0.02], dtype=torch.float64))
    pair.keep([1])
    pair.steps(7)
    assert pair.distance() < 1e-12
    pair.check_states()


@pytest.mark.parametrize("case", CASES)
def test_skipped_members_are_left_alone(case: Any, pair: Any) -> None:
    pair = pair(*CASES[case])
    draw = torch.Generator().manual_seed(1)
    for step in range(20):
        skip = torch.rand(MEMBERS, generator=draw) < (0.6 if step < 8 else 0.1)
        pair.gradients()
        for param in pair.stacked:
            param.grad[skip] = math.inf
        for k, solo in enumerate(pair.solos):
            if not skip[k]:
                solo.step()
        pair.optimizer.step(skip=skip)
    assert pair.distance() < 1e-12
    pair.check_states()


@pytest.mark.parametrize("case", [case for case in CASES if case != "sgd_fused"])  # torch's own kernel fails there
def test_parameters_without_a_gradient(case: Any, pair: Any) -> None:
    pair = pair(*CASES[case])
    pair.steps(3, without=(1,))
    pair.check_states()
    pair.steps(3)
    pair.steps(3, without=(3,))
    pair.steps(3)
    pair.steps(3, without=(0, 2, 3))
    pair.steps(3, without=(0, 1, 2, 3))
    pair.steps(3)
    assert pair.distance() < 1e-12
    pair.check_states()


@pytest.mark.parametrize("case", CASES)
def test_a_state_goes_from_solo_to_stacked_and_back(case: Any, pair: Any) -> None:
    pair = pair(*CASES[case])
    for solo in pair.solos:  # alone first
        pair.gradients()
        solo.step()
    for k, solo in enumerate(pair.solos):
        for param, stack in zip(pair.params[k], pair.stacked, strict=True):
            stack.data[k] = param.detach()
        saved = solo.state_dict()
        pair.optimizer.load_member_state_dict(k, saved)
        solo.load_state_dict(saved)  # torch casts as it loads: both have to
    pair.steps(10)
    assert pair.distance() < 1e-12
    pair.check_states()
    for k, (solo, params) in enumerate(zip(pair.solos, pair.params, strict=True)):  # alone again
        with torch.no_grad():
            for param, stack in zip(params, pair.stacked, strict=True):
                param.copy_(stack[k])
        solo.load_state_dict(pair.optimizer.member_state_dict(k))
        pair.optimizer.load_member_state_dict(k, solo.state_dict())
    pair.steps(10)
    assert pair.distance() < 1e-12
    pair.check_states()


@pytest.mark.parametrize("case", ["adam", "nadam", "sgd_some_momentum", "adagrad_initial", "lion"])
def test_solos_that_have_stepped_are_stacked_with_their_states(case: str, pair: Any) -> None:
    pair = pair(*CASES[case])
    for k, solo in enumerate(pair.solos):
        for _ in range(k):  # unequally often
            pair.gradients()
            solo.step()
        for param, stack in zip(pair.params[k], pair.stacked, strict=True):
            stack.data[k] = param.detach()
    pair.stack()
    pair.check_states()
    pair.steps(10)
    assert pair.distance() < 1e-12
    pair.check_states()


def test_a_member_that_loads_no_state_begins_anew(pair: Any) -> None:
    pair = pair(*CASES["adam"])
    fresh = pair.optimizer.member_state_dict(2)
    assert fresh["state"] == {}
    pair.steps(5)
    pair.optimizer.load_member_state_dict(2, fresh)
    pair.solos[2] = pair.solo(pair.params[2], CASES["adam"][1][2])
    pair.steps(5)
    assert pair.distance() < 1e-12
    pair.check_states()


def test_loading_brings_the_numbers_and_leaves_the_other_members(pair: Any, assert_same: Any) -> None:
    pair = pair(*CASES["adam_betas"])
    pair.steps(2)
    saved = pair.optimizer.member_state_dict(1)
    others = pair.optimizer.member_state_dict(0)
    saved["param_groups"][0].update(lr=0.5, betas=(0.1, 0.2))
    pair.optimizer.load_member_state_dict(1, saved)
    assert_same(pair.optimizer.member_state_dict(1), saved, 0)
    assert_same(pair.optimizer.member_state_dict(0), others, 0)
    assert pair.optimizer.member_param_groups(1)[0]["betas"] == (0.1, 0.2)


def test_what_is_saved_is_a_copy(pair: Any) -> None:
    pair = pair(*CASES["adam"])
    pair.steps(1)
    saved = pair.optimizer.member_state_dict(0)["state"][0]["exp_avg"]
    assert saved.untyped_storage().nbytes() == saved.numel() * saved.element_size()
    before = saved.clone()
    pair.steps(1)
    assert torch.equal(saved, before)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda s: s["param_groups"].pop(), ValueError, "different number of parameter groups"),
        (lambda s: s["param_groups"][0]["params"].append(9), ValueError, "doesn't match the size"),
        (lambda s: s["state"][0].update(exp_avg=torch.zeros(1)), ValueError, r"exp_avg has the shape \[1\]"),
        (lambda s: s["param_groups"][0].update(amsgrad=True), Unfusable, "optim.amsgrad is False, but was True"),
    ],
)
def test_a_state_of_something_else_is_refused(change: Any, error: Any, message: str, pair: Any) -> None:
    pair = pair(*CASES["adam"])
    pair.steps(1)
    saved = pair.optimizer.member_state_dict(0)
    change(saved)
    with pytest.raises(error, match=message):
        pair.optimizer.load_member_state_dict(0, saved)
