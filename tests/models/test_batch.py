"""Where a batch keeps its target, and how it moves."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from trainyard.batch import TARGET_KEYS, lies_on, no_target, split_target, target_of, to_device
from trainyard.errors import TrainyardError

META = torch.device("meta")
CPU = torch.device("cpu")


def test_target_is_the_last_of_a_tuple_or_list() -> None:
    assert target_of((1, 2)) == 2
    assert target_of([1, 2, 3]) == 3


@pytest.mark.parametrize("key", TARGET_KEYS)
def test_target_is_found_under_any_of_its_keys(key: str) -> None:
    assert target_of({"x": 1, key: 2}) == 2
    assert target_of(UserDict({"x": 1, key: 2})) == 2


@pytest.mark.parametrize(
    ("batch", "what"),
    [
        (torch.ones(2), "it consists of a single Tensor."),
        ((1,), "it consists of a single int."),
        ((), "it is a tuple with 0 elements."),
        ({"x": 1}, "it is a mapping with the key x."),
        ({"x": 1, "mask": 2}, "it is a mapping with the keys x, mask."),
        ({}, "it is an empty mapping."),
    ],
)
def test_a_batch_without_target_says_what_it_is(batch: object, what: str) -> None:
    with pytest.raises(TrainyardError, match="no target") as error:
        target_of(batch)
    assert what in str(error.value)


def test_graphs_without_target_lack_y() -> None:
    graphs = type("Graphs", (), {"num_nodes": 3, "num_edges": 2, "to": None, "y": None})()
    for batch in (graphs, (graphs,)):
        assert str(no_target(batch)) == "The batch has no target: its graphs have no y."


def test_split_target() -> None:
    assert split_target((1,), {}) == ((1,), {}, None)
    assert split_target((1, 2), {}) == ((1,), {}, 2)
    assert split_target((1, 2, 3), {}) == ((1, 2), {}, 3)
    assert split_target((), {"image": 1, "label": 2}) == ((1,), {}, 2)
    assert split_target((), {"image": 1}) == ((1,), {}, None)
    assert split_target((), {"a": 1, "b": 2, "y": 3}) == ((), {"a": 1, "b": 2}, 3)
    assert split_target((1,), {"target": 3}) == ((1,), {}, 3)
    assert split_target((1,), {"mask": 2, "target": 3}) == ((1,), {"mask": 2}, 3)


def test_tensors_of_any_nesting_move() -> None:
    point = namedtuple("point", "x y")
    batch = {
        "a": torch.ones(2),
        "b": [torch.ones(1), (torch.ones(1), "text", 3, None)],
        "c": point(torch.ones(1), {"deep": torch.ones(1)}),
        "d": OrderedDict(k=torch.ones(1)),
        "e": pack_sequence([torch.ones(2)]),
    }
    moved = to_device(batch, META)
    assert moved["a"].device == META
    assert moved["b"][0].device == META
    assert moved["b"][1][0].device == META
    assert moved["b"][1][1:] == ("text", 3, None)
    assert isinstance(moved["c"], point)
    assert moved["c"].x.device == META
    assert moved["c"].y["deep"].device == META
    assert moved["d"]["k"].device == META
    assert moved["e"].data.device == META
    assert batch["a"].device == CPU  # type: ignore[attr-defined] # the batch that was given is not changed


def test_tensors_that_are_there_are_the_same_objects() -> None:
    x, y = torch.ones(2), torch.ones(3)
    moved = to_device((x, {"y": y}), CPU)
    assert moved[0] is x
    assert moved[1]["y"] is y


@pytest.mark.parametrize(
    ("batch", "there"),
    [
        ((torch.ones(1), torch.ones(2)), True),
        ((torch.ones(1), torch.ones(2, device=META)), False),
        ((torch.ones(1), [torch.ones(2, device=META)]), False),
        ([torch.ones(1)], False),
        ({"x": torch.ones(1)}, False),
    ],
)
def test_a_tuple_of_tensors_that_lie_on_the_device_is_not_walked_for_a_transfer(batch: object, there: bool) -> None:
    assert lies_on(batch, CPU) is there
