"""Population-based training in simulated time, and its settings."""

from __future__ import annotations

import heapq
import math
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from trainyard.errors import ConfigError
from trainyard.sweep.events import Event, Inherited, Paused, Proposed, Queued, Reported, Unit
from trainyard.sweep.proposers.population import Exploration, PopulationProposer, perturbed, within
from trainyard.sweep.proposers.population_settings import PopulationSettings
from trainyard.sweep.proposers.space import Space
from trainyard.sweep.simulation import SimulatedJob, SimulatedSweep
from trainyard.track.sweep_position import Rungs

EPOCHS, INTERVAL = 9, 2
LINES = ["optim.lr=tag(log,interval(1e-4,1e-1))", "data.batch_size=range(16,65,16)", "model.hidden=[8],[16],[32]"]


@pytest.fixture(scope="module")
def space(composed: Any) -> Space:
    loader, config = composed
    return Space(LINES, {}, loader, config)


def values(num: int, overrides: tuple[str, ...]) -> list[float]:
    """Return a loss that is best at lr = 1e-2; members that are alike have different ones."""
    rate = next(float(line.partition("=")[2]) for line in overrides if line.startswith("optim.lr="))
    return [abs(math.log10(rate) + 2) + 1 / (epoch + 1) + num * 1e-6 for epoch in range(EPOCHS)]


def sweep(space: Space, count: int, quantile: float, slots: int, seconds: Any) -> SimulatedSweep:
    def make() -> PopulationProposer:
        places = range(INTERVAL, EPOCHS, INTERVAL)
        return PopulationProposer(Exploration(space, {}), count, places, quantile=quantile, seeds=range(count))

    return SimulatedSweep(make, lambda num, own: SimulatedJob(values(num, own), seconds(num)), slots)


def told(log: list[Event]) -> list[Any]:
    """Return the first values, and what has been inherited, in an order of their own."""
    return [event for event in log if isinstance(event, Proposed)] + sorted(
        (event for event in log if isinstance(event, Inherited)), key=lambda event: (event.at, event.num)
    )


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(2, 12),
    quantile=st.sampled_from([0.1, 0.25, 0.5]),
    slots=st.integers(1, 4),
    seed=st.integers(0, 1 << 30),
    kills=st.lists(st.integers(1, 12), max_size=3),
)
def test_neither_durations_nor_kills_decide(
    space: Space, count: int, quantile: float, slots: int, seed: int, kills: list[int]
) -> None:
    undisturbed = sweep(space, count, quantile, slots, lambda num: 1.0)
    assert undisturbed.run()
    draw = Random(seed)
    other = sweep(space, count, quantile, slots, lambda num: draw.choice([0.1, 1.0, 5.0]))
    for further in kills:
        seen = len(other.log)
        other.run(lambda: len(other.log) >= seen + further)  # noqa: B023
        other.kill()
    assert other.run()
    assert told(other.log) == told(undisturbed.log)
    assert {other.state(num) for num in range(count)} == {"done"}


@pytest.mark.parametrize("at_rung", [False, True])
@pytest.mark.parametrize("slots", [1, 3])
def test_a_member_that_a_user_has_paused_leaves_the_population_until_it_is_resumed(
    space: Space, at_rung: bool, slots: int
) -> None:
    found = sweep(space, 6, 0.34, slots, lambda num: 1.0 + num / 100)
    state = "paused" if at_rung else "running"
    found.run(lambda: found.epochs.get(2) == INTERVAL and found.state(2) == state)
    found._coming[:] = [each for each in found._coming if each[3].nums != (2,)]
    heapq.heapify(found._coming)
    found._tell(Paused(2, by_hand=True))
    begun = len(found.log)
    for _ in range(2):
        assert found.run()
        assert [found.state(num) for num in range(6)] == ["done", "done", "paused", "done", "done", "done"]
        found.kill()
    for event in found.log[begun:]:
        assert not (isinstance(event, Queued) and any(2 in unit.nums for unit in event.units))
        assert not (isinstance(event, Inherited) and 2 in (event.num, event.source))

    rungs = found.proposer.beyond(2) if at_rung else found._scheduler.rungs.get(2)
    assert rungs == Rungs((2 * INTERVAL,), until=2 * INTERVAL)
    found._tell(Queued((Unit((2,), rungs=rungs),), "resumed"))
    assert found.run()
    assert found.state(2) == "done"
    assert [event.at for event in found.log if isinstance(event, Reported) and event.num == 2] == [2, 4, 6, 8]


def test_the_others_wait_for_a_member_that_is_resumed(space: Space) -> None:
    found = sweep(space, 4, 0.25, 4, lambda num: 1.0)
    found.run(lambda: found.state(1) == "paused")
    found._tell(Paused(1, by_hand=True))
    found.run(lambda: found.epochs[0] == 2 * INTERVAL)
    found._tell(Queued((Unit((1,), rungs=found.proposer.beyond(1)),), "resumed"))
    assert found.run()
    assert {found.state(num) for num in range(4)} == {"done"}
    reports = [(event.num, event.at) for event in found.log if isinstance(event, Reported)]
    assert reports.index((1, 2 * INTERVAL)) < min(reports.index((num, 3 * INTERVAL)) for num in range(4))


def test_the_worst_go_on_as_the_best_with_other_values_and_the_same_seed(space: Space) -> None:
    simulated = sweep(space, 8, 0.25, 2, lambda num: 1.0)
    assert simulated.run()
    overrides: dict[int, tuple[str, ...]] = {}
    reports: dict[int, dict[int, float]] = {}
    heirs = 0
    for event in simulated.log:
        match event:
            case Proposed(num, own):
                overrides[num] = own
            case Reported(num, at, value):
                reports.setdefault(at, {})[num] = value
            case Inherited(num, source, at, own):
                heirs += 1
                ranked = sorted(reports[at], key=lambda each: reports[at][each])
                assert source in ranked[:2]
                assert num in ranked[-2:]
                assert own[-1] == overrides[source][-1], "the seed"
                before, after = (space.values(each) for each in (overrides[source], own))
                factor = after["optim.lr"] / before["optim.lr"]
                assert min(abs(factor - each) for each in (0.8, 1.25)) < 1e-9 or after["optim.lr"] in (1e-4, 1e-1)
                assert abs(after["data.batch_size"] - before["data.batch_size"]) in (0, 16)
                overrides[num] = own
            case Queued(units, "promoted"):
                assert all(unit.rungs is None or unit.rungs.until in (4, 6, 8) for unit in units)
    assert heirs == 2 * 4
    assert [each.partition("=")[2] for each in (own[-1] for own in overrides.values())] != list("01234567")


@settings(max_examples=100, deadline=None)
@given(value=st.floats(-10, 200), seed=st.integers(0, 99))
def test_a_value_stays_in_its_range_and_type(space: Space, value: float, seed: int) -> None:
    rate, size = space.parameters["optim.lr"], space.parameters["data.batch_size"]
    assert 1e-4 <= within(rate, value) <= 1e-1
    found = within(size, value)
    assert isinstance(found, int)
    assert found in (16, 32, 48, 64)
    changed = perturbed(size, found, (0.8, 1.25), Random(seed))
    assert isinstance(changed, int)
    assert changed in (16, 32, 48, 64)
    assert perturbed(space.parameters["model.hidden"], "[8]", (0.8, 1.25), Random(seed)) in ("[8]", "[16]")


@pytest.mark.parametrize(
    ("given", "config", "message"),
    [
        ({"population": 1}, {}, "hydra.sweeper.population: 1 is invalid. Expected an integer of at least 2"),
        ({"interval": 3}, {"val_interval": 2}, "hydra.sweeper.interval: 3 is invalid. Expected a multiple of"),
        ({"interval": 9}, {}, "hydra.sweeper.interval: 9 is invalid. Expected less than loop.max_epochs=9"),
        (
            {"interval": 1},
            {"max_epochs": 1},
            "loop.max_epochs: 1 is invalid. Expected at least 2 for hydra/sweeper=pbt, because each generation ends",
        ),
        ({}, {"max_epochs": 2, "val_interval": 2}, "loop.max_epochs: 2 is invalid. Expected at least 3 for"),
        ({}, {"val_begin": 9}, "loop.val_begin: 9 is invalid. Expected at most 8, the last multiple of"),
        ({}, {"val_begin": "x"}, "loop.val_begin: 'x' is invalid. Expected an integer of at least 1"),
        ({}, {"val_interval": 0}, "loop.val_interval: 0 is invalid. Expected an integer of at least 1"),
        ({}, {"max_epochs": "x"}, "loop.max_epochs: 'x' is invalid. Expected an integer of at least 1"),
        ({"quantile": 0.2}, {}, "hydra.sweeper.quantile: 0.2 is invalid. Expected a fraction from 1/4 to 0.5, so that"),
        ({"explore": ["optim.lr"]}, {}, "Expected a mapping from keys to perturb or resample, such as"),
        ({"quantile": 0.6}, {}, "hydra.sweeper.quantile: 0.6 is invalid. Expected a fraction of the population"),
        ({"quantile": "half"}, {}, "hydra.sweeper.quantile: 'half' is invalid. Expected a fraction of the population"),
        ({"factors": [1.1, 1.2]}, {}, "hydra.sweeper.factors: .* is invalid. Expected two numbers above 0"),
        ({"factors": ["0,8", 1.25]}, {}, "hydra.sweeper.factors: .* is invalid. Expected two numbers above 0"),
        ({"explore": {"optim.lr": "shuffle"}}, {}, "hydra.sweeper.explore.optim.lr: 'shuffle' is invalid"),
        (
            {"size": 8},
            {},
            "hydra.sweeper: .size. is invalid. Expected a setting of hydra/sweeper=pbt: pop",
        ),
    ],
)
def test_a_wrong_setting_is_explained(given: Any, config: Any, message: str) -> None:
    whole = OmegaConf.create({"loop": {"max_epochs": 9, **config}, "direction": "minimize", "objective": "val/loss"})
    with pytest.raises(ConfigError, match=message):
        PopulationSettings.from_config({"population": 4, "interval": 2, **given}, whole)


def test_no_generation_ends_before_the_first_validation() -> None:
    config = OmegaConf.create({"loop": {"max_epochs": 9, "val_begin": 5}, "direction": "minimize"})
    assert PopulationSettings.from_config({"population": 4, "interval": 2}, config).places == (6, 8)


def test_a_key_that_does_not_vary_cannot_be_explored(composed: Any) -> None:
    loader, config = composed
    found = PopulationSettings.from_config(
        {"population": 4, "interval": 2, "explore": {"optim.betas": "perturb"}}, config
    )
    with pytest.raises(
        ConfigError, match=r"hydra.sweeper.explore: 'optim.betas' is invalid. Expected a key that varies"
    ):
        found.proposer(LINES, loader, config)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("loop.max_epochs=choice(3,6)", r"loop.max_epochs: 'choice\(3,6\)' is invalid. Expected a single value"),
        ("++loop.val_begin=range(1,4)", r"loop.val_begin: 'range\(1,4\)' is invalid. Expected a single value"),
        ("loop.val_interval=1,2", "loop.val_interval: '1,2' is invalid. Expected a single value"),
        ("loop=epoch,iter", "loop: 'epoch,iter' is invalid. Expected a single value"),
    ],
)
def test_the_ends_of_generations_do_not_vary(composed: Any, line: str, message: str) -> None:
    loader, config = composed
    found = PopulationSettings.from_config({"population": 4, "interval": 2}, config)
    with pytest.raises(ConfigError, match=message):
        found.proposer([*LINES, line], loader, config)


def test_one_listed_length_does_not_vary(composed: Any) -> None:
    loader, config = composed
    length = config.loop.max_epochs
    found = PopulationSettings.from_config({"population": 4, "interval": 2}, config)
    found.proposer([*LINES, f"loop.max_epochs=choice({length})"], loader, config)
