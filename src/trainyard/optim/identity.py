"""Identity of an optimizer's parameters: saved states are bound to names, shapes and dtypes, not to positions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch import Tensor, nn

from trainyard.errors import some
from trainyard.optim import without_dynamo
from trainyard.optim.several import OptimizerDict

SHOWN = 4  # names in a message
SHAPED = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "grad_avg", "sum", "exp_inf")
"""Entries of a parameter's state that have the parameter's shape, in the optimizers of torch and in Lion."""

Entry = Sequence[Any]
"""A parameter in a checkpoint: name, shape, dtype."""
Groups = Sequence[Sequence[Entry]]


@dataclass(frozen=True)
class Beginning:
    """Parameters that a run trained when its optimizer was built, before a hook changed them.

    Attributes:
        sizes: for each optimizer by name ("" for a single one), the number of parameters in each group.
        frozen: the parameters that had no gradients, by name.
        left_out: names of the parameters that had gradients but were in no optimizer.
    """

    sizes: Mapping[str, Sequence[int]]
    frozen: Mapping[str, nn.Parameter]
    left_out: Sequence[str]

    @classmethod
    def of(cls, model: nn.Module, optimizer: Any) -> Beginning:
        parts = optimizers_of(optimizer)
        held = held_by(optimizer)
        named = dict(model.named_parameters())
        frozen = {name: parameter for name, parameter in named.items() if not parameter.requires_grad}
        left_out = [name for name, parameter in named.items() if name not in frozen and id(parameter) not in held]
        sizes = {name: [len(group["params"]) for group in part.param_groups] for name, part in parts.items()}
        return cls(sizes, frozen, left_out)


def optimizers_of(optimizer: Any) -> dict[str, Any]:
    """Return the individual optimizers by name; a single optimizer has the name ""."""
    return dict(optimizer.optimizers) if isinstance(optimizer, OptimizerDict) else {"": optimizer}


def held_by(optimizer: Any) -> set[int]:
    """Return the ids of the parameters that an optimizer holds."""
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def record(model: nn.Module, optimizer: Any, beginning: Beginning) -> dict[str, Any]:
    """Return the data that a checkpoint contains in addition to the state of an optimizer, for `bind`.

    The positions in the state of the optimizer, and in lists of gradients, count the entries of `groups`.
    """
    return {
        "groups": {name: _entries(model, part) for name, part in optimizers_of(optimizer).items()},
        "groups_at_start": {name: list(sizes) for name, sizes in beginning.sizes.items()},
        "frozen": [name for name, parameter in model.named_parameters() if not parameter.requires_grad],
        "frozen_at_start": list(beginning.frozen),
    }


def _entries(model: nn.Module, optimizer: Any) -> list[list[list[Any]]]:
    named = zip(_names(model, optimizer), optimizer.param_groups, strict=True)
    return [[_entry(*each) for each in zip(names, group["params"], strict=True)] for names, group in named]


def _entry(name: str, parameter: Tensor) -> list[Any]:
    return [name, list(parameter.shape), str(parameter.dtype).removeprefix("torch.")]


def _names(model: nn.Module, optimizer: Any) -> list[list[str]]:
    """Return the names of an optimizer's parameters by group; a parameter outside the model is named by its
    position."""
    own: list[list[str]] | None = getattr(optimizer, "parameter_names", None)  # of a member of a stack
    if own is not None:
        return own
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [
        [names.get(id(parameter), f"<{number}.{index}>") for index, parameter in enumerate(group["params"])]
        for number, group in enumerate(optimizer.param_groups)
    ]


@dataclass(frozen=True)
class _Part:
    """Positions of the saved state of one optimizer.

    Attributes:
        groups: for each group of this run, the number of the saved group.
        sizes: the number of parameters in each group of this run.
        positions: for each parameter of this run, numbered across the groups, the saved position.
    """

    groups: Sequence[int]
    sizes: Sequence[int]
    positions: Sequence[int]

    @property
    def same(self) -> bool:
        return list(self.groups) == sorted(self.groups) and list(self.positions) == sorted(self.positions)


class Binding:
    """Data of a checkpoint by parameter or by parameter group, in the order of the optimizer of this run.

    Args:
        parts: the parts by the name of the optimizer.
    """

    def __init__(self, parts: Mapping[str, _Part]) -> None:
        self._parts = parts

    def optimizer(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return the argument for `optimizer.load_state_dict`.

        Raises:
            ValueError: the state of an optimizer has an unknown format, and its parameters are in another order.
        """
        if "" in self._parts:
            return _reordered(state, self._parts[""])
        states = {name: _reordered(state["optimizers"][name], part) for name, part in self._parts.items()}
        return {**state, "optimizers": states}

    def step(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return the state of a step; its gradients are those of the optimizer's parameters."""
        if "" in self._parts:
            return _of_step(state, self._parts[""])
        return {**state, "steps": {name: _of_step(each, self._parts[name]) for name, each in state["steps"].items()}}

    @property
    def groups(self) -> list[int]:
        """For each parameter group, numbered across all optimizers, the number of the saved group."""
        found: list[int] = []
        for part in self._parts.values():
            found += [len(found) + number for number in part.groups]
        return found


def _reordered(state: dict[str, Any], part: _Part) -> dict[str, Any]:
    if part.same:
        return state
    if "param_groups" not in state or "state" not in state:
        raise ValueError("its optimizer state has an unknown format, and the order of the parameters differs")
    packed = list(chain.from_iterable(group["params"] for group in state["param_groups"]))
    groups: list[dict[str, Any]] = []
    first = 0
    for number, size in zip(part.groups, part.sizes, strict=True):
        kept = {key: value for key, value in state["param_groups"][number].items() if key != "param_names"}
        groups.append({**kept, "params": list(range(first, first + size))})
        first += size
    entries = {
        new: state["state"][packed[old]] for new, old in enumerate(part.positions) if packed[old] in state["state"]
    }
    return {**state, "state": entries, "param_groups": groups}


def _of_step(state: dict[str, Any], part: _Part) -> dict[str, Any]:
    gradients = state.get("gradients")
    return {**state, "gradients": [gradients[old] for old in part.positions]} if gradients else state


def bind(
    model: nn.Module, optimizer: Any, beginning: Beginning, saved: Mapping[str, Any] | None, state: Mapping[str, Any]
) -> Binding:
    """Bind the saved state of an optimizer to the parameters of this run with the same names.

    Parameters that the saved run unfroze after its start are trained from here on: they get gradients and are added to
    the optimizer in the same groups.

    Args:
        model: the model with the parameters.
        optimizer: the newly built optimizer.
        beginning: the beginning of this optimizer.
        saved: the result of `record`; None for a checkpoint without it; positions are then used, and shapes are
            compared if the state contains them.
        state: the state of the optimizer.

    Raises:
        ValueError: parameters, shapes, dtypes or groups differ from those of the checkpoint; the message names both
            sides.
    """
    own = optimizers_of(optimizer)
    theirs = saved["groups"] if saved is not None else state.get("optimizers", {"": state})
    if own.keys() != theirs.keys():
        if "" in theirs:
            raise ValueError(f"it contains one optimizer, but this run has {', '.join(own)}")
        here = "one optimizer" if "" in own else ", ".join(own)
        raise ValueError(f"its optimizers are {', '.join(theirs)}, but this run has {here}")
    if saved is None:
        return Binding({name: _by_position(model, part, theirs[name]) for name, part in own.items()})
    first = _first_names(model)
    frozen, at_start = ([first.get(name, name) for name in saved[key]] for key in ("frozen", "frozen_at_start"))
    _check_same("frozen", at_start, beginning.frozen)
    parts = {}
    for name, part in own.items():
        groups = [[[first.get(entry[0], entry[0]), *entry[1:]] for entry in group] for group in theirs[name]]
        parts[name] = _by_name(model, part, groups, saved["groups_at_start"][name])
    changed = [(name, each) for name, each in model.named_parameters() if each.requires_grad == (name in frozen)]
    for name, parameter in changed:
        parameter.requires_grad_(name not in frozen)
    if changed:
        model.train(model.training)  # what is frozen decides which modules stay in evaluation mode
    return Binding(parts)


def _first_names(model: nn.Module) -> dict[str, str]:
    """Return, for every name of a parameter, the first name of the same parameter: tied ones have several."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {name: names[id(parameter)] for name, parameter in model.named_parameters(remove_duplicate=False)}


def _by_name(model: nn.Module, optimizer: Any, saved: Groups, at_start: Sequence[int]) -> _Part:
    own = _entries(model, optimizer)
    begun = [group[:size] for group, size in zip(saved, at_start, strict=False)]
    entries = {entry[0]: entry for entry in chain.from_iterable(saved)}
    _check_same("trained", [entry[0] for entry in chain.from_iterable(begun)], _names_of(own))
    for name, shape, dtype in chain.from_iterable(own):
        if list(entries[name][1:]) != [shape, dtype]:
            there = _described(entries[name])
            raise ValueError(f"its parameter {name} is {there}, but {shape} in {dtype} in this run")
    left = dict(enumerate(begun))
    numbers = []
    for group in own:
        number = next(
            (each for each, theirs in left.items() if set(_names_of([theirs])) == set(_names_of([group]))), None
        )
        if number is None:
            raise ValueError(f"its parameter groups are {_shown(begun)}, but this run has {_shown(own)}")
        del left[number]
        numbers.append(number)
    if left:
        raise ValueError(f"its parameter groups are {_shown(begun)}, but this run has {_shown(own)}")
    numbers += _add_later(model, optimizer, saved, at_start, numbers)
    places = {entry[0]: place for place, entry in enumerate(chain.from_iterable(saved))}
    names = _names(model, optimizer)
    return _Part(numbers, [len(group) for group in names], [places[name] for name in chain.from_iterable(names)])


def _add_later(
    model: nn.Module, optimizer: Any, saved: Groups, at_start: Sequence[int], numbers: Sequence[int]
) -> Sequence[int]:
    """Add to an optimizer the parameters that were later added to the saved one; return the numbers of the new
    groups."""
    grown = [(own, saved[number][at_start[number] :]) for own, number in enumerate(numbers)]
    later = list(chain.from_iterable([*(more for _, more in grown), *saved[len(at_start) :]]))
    if later and not hasattr(optimizer, "add_param_group"):
        raise ValueError(f"its run later unfroze {some(_names_of([later]), SHOWN)}, which is not possible in a stack")
    parameters = dict(model.named_parameters())
    for entry in later:
        found = parameters.get(entry[0])
        if found is None or _entry(entry[0], found) != [entry[0], list(entry[1]), entry[2]]:
            here = (
                "but this model has no such parameter"
                if found is None
                else f"but in this model the parameter is {_described(_entry(entry[0], found))}"
            )
            raise ValueError(f"it contains {entry[0]}, {_described(entry)}, {here}")
    for own, more in grown:
        optimizer.param_groups[own]["params"] += [parameters[entry[0]] for entry in more]
    for group in saved[len(at_start) :]:
        add = without_dynamo.method(optimizer, "add_param_group")
        add({"params": [parameters[entry[0]] for entry in group]})
    return range(len(at_start), len(saved))


def _by_position(model: nn.Module, optimizer: Any, state: Mapping[str, Any]) -> _Part:
    """Take the saved state of an optimizer by position, if counts and shapes match the parameters."""
    own = _entries(model, optimizer)
    sizes = [len(group) for group in own]
    theirs = [len(group["params"]) for group in state.get("param_groups", [{"params": group} for group in own])]
    if theirs != sizes:
        raise ValueError(f"its parameter groups have {theirs} parameters, but those of this run have {sizes}")
    for place, (name, shape, _) in enumerate(chain.from_iterable(own)):
        for key, value in state.get("state", {}).get(place, {}).items():
            if key in SHAPED and isinstance(value, Tensor) and list(value.shape) != shape:
                raise ValueError(
                    f"its {key} for parameter {place} has the shape {list(value.shape)}, but {name} has {shape}"
                )
    return _Part(range(len(sizes)), sizes, range(sum(sizes)))


def _check_same(what: str, theirs: Collection[str], own: Collection[str]) -> None:
    only_theirs = [name for name in theirs if name not in set(own)]
    only_own = [name for name in own if name not in set(theirs)]
    differ = [f"{what} in the checkpoint but not in this run: {some(only_theirs, SHOWN)}"] if only_theirs else []
    differ += [f"{what} in this run but not in the checkpoint: {some(only_own, SHOWN)}"] if only_own else []
    if differ:
        raise ValueError("; ".join(differ))


def _names_of(groups: Groups) -> list[str]:
    return [entry[0] for entry in chain.from_iterable(groups)]


def _shown(groups: Groups) -> str:
    return " and ".join(f"({some(_names_of([group]), SHOWN)})" for group in groups)


def _described(entry: Sequence[Any]) -> str:
    _, shape, dtype = entry
    return f"{list(shape)} in {dtype}"
