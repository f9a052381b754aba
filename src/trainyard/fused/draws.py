"""Random operations under `torch.vmap`: each member of a stack draws with the generators of its lane.

`torch.vmap` turns a random function of a member into one of torch's few random operations on a stack `[K, ...]`.
`Draws` intercepts these operations and draws each row with the generator of its lane, in the shape and layout of a
single run, so that the bits are those of a single run. It is active only within `random_functions`, so that other
operations are not slowed down.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from trainyard._torch_vmap import DispatchMode, private_functions, vmap_exit
from trainyard.errors import Unfusable
from trainyard.fused.lanes import Lanes

Arguments = tuple[Any, ...]
Named = Mapping[str, Any]


class Draws(DispatchMode):
    """Mode in which random operations on stacks `[K, ...]` draw each row with its lane's generator.

    Attributes:
        lanes: the generators, in the order of the rows.
        lane: inside the `vmap`, any tensor that differs between the members.
        way: leaves the `vmap`; None if fast paths are off.
    """

    lane: Tensor

    def __init__(self, lanes: Lanes) -> None:
        super().__init__()
        self.lanes = lanes
        self.way = vmap_exit()
        self._permutations: Iterator[Tensor] = iter(())

    def __torch_dispatch__(self, func: Any, types: Any, args: Arguments = (), kwargs: Named | None = None) -> Any:
        # The mode is off in here.
        rule = RULES.get(func)
        return func(*args, **(kwargs or {})) if rule is None else rule(self, args, dict(kwargs or {}))

    def fill(self, stack: Tensor, write: Callable[[Tensor, Generator], object]) -> Tensor:
        """Fill each row of a stack with `write`, which draws the same number of times for every generator; return the
        stack."""
        generators = self._generators(stack)
        places: dict[int, int] = {}
        lanes = [places.setdefault(id(generator), len(places)) for generator in generators]
        if len(places) == len(lanes):
            for row, generator in zip(stack.unbind(0), generators, strict=True):
                if row.is_contiguous():
                    write(row, generator)
                else:  # as an operation in a single run does it, which has no gaps between its numbers
                    row.copy_(_written(torch.empty_like(row), generator, write))
            return stack
        # Lanes that share a generator share what it draws.
        distinct = {id(generator): generator for generator in generators}.values()
        drawn = [_written(torch.empty_like(stack[0]), generator, write) for generator in distinct]
        return stack.copy_(drawn[0] if len(drawn) == 1 else torch.stack(drawn)[lanes])

    def each(self, draw: Callable[..., Any], tensors: Sequence[Any]) -> list[Any]:
        """Return the result of `draw(*tensors, generator)` for each lane, with its rows of the stacked tensors."""
        most = max(tensor.dim() for tensor in tensors if isinstance(tensor, Tensor))
        stacks = [tensor for tensor in tensors if isinstance(tensor, Tensor) and tensor.dim() == most]
        generators = self._generators(max(stacks, key=lambda stack: stack.shape[:1]))
        users = Counter(map(id, generators))
        ends: dict[int, tuple[Tensor, Tensor]] = {}  # of generators that lanes share: their states before and after
        results = []
        for k, generator in enumerate(generators):
            states = ends.get(id(generator))
            begin = generator.get_state() if users[id(generator)] > 1 and states is None else None
            if states is not None:
                generator.set_state(states[0])
            results.append(draw(*(_row(tensor, k, most) for tensor in tensors), generator))
            if begin is not None:
                ends[id(generator)] = begin, generator.get_state()
            elif states is not None and not torch.equal(states[1], generator.get_state()):
                self.lanes.part(k)  # how much was drawn depends on the lane's values
        for generator in generators:
            if id(generator) in ends:
                generator.set_state(ends[id(generator)][1])
        return results

    def permutation(self, n: int, **options: Any) -> Tensor:
        """Return a permutation for the next lane: `vmap` requests them lane by lane."""
        found = next(self._permutations, None)
        if found is None:
            device = torch.empty((), **options).device
            like = torch.empty(len(self.lanes), n, dtype=options.pop("dtype", None) or torch.int64, device=device)
            permute = partial(torch.randperm, n, dtype=like.dtype, device=device)
            self.fill(like, lambda row, generator: row.copy_(permute(generator=generator)))
            self._permutations = iter(like.unbind(0))
            found = next(self._permutations)
        return found

    def _generators(self, stack: Tensor) -> list[Generator]:
        if stack.dim() == 0 or stack.shape[0] != len(self.lanes):
            raise Unfusable("the model draws random numbers inside an operation that a stack runs once for all members")
        return self.lanes.on(stack.device)


def _written(tensor: Tensor, generator: Generator, write: Callable[[Tensor, Generator], object]) -> Tensor:
    write(tensor, generator)
    return tensor


def _row(tensor: Any, k: int, most: int) -> Any:
    """Return the row of a lane in a stack, which has the most dimensions; other tensors are broadcast."""
    if not isinstance(tensor, Tensor) or tensor.dim() < most:
        return tensor
    return tensor[k if tensor.shape[0] > 1 else 0]


@contextmanager
def swapped(generator: Generator) -> Iterator[None]:
    """Inside the block, make the generator of the process on a device draw the numbers of another generator."""
    if generator.device.type == "cuda":
        default: Any = torch.cuda.default_generators[generator.device.index]
        own = default.graphsafe_get_state()
        default.graphsafe_set_state(generator)
        try:
            yield
        finally:
            default.graphsafe_set_state(own)
        return
    default = torch.default_generator
    if generator is default:
        yield
        return
    before = default.get_state()
    default.set_state(generator.get_state())
    try:
        yield
    finally:
        generator.set_state(default.get_state())
        default.set_state(before)


# -- random operations -------------------------------------------------------------------------------------------------

Rule = Callable[[Draws, Arguments, dict[str, Any]], Any]


def _in_place(name: str) -> Rule:
    def rule(draws: Draws, args: Arguments, kwargs: dict[str, Any]) -> Tensor:
        stack, *numbers = args
        return draws.fill(stack, lambda row, generator: getattr(row, name)(*numbers, **kwargs, generator=generator))

    return rule


def _filled(draws: Draws, stack: Tensor, name: str, numbers: Sequence[Any]) -> Tensor:
    """Fill each lane's row by a method such as `normal_`; a single number is the end of a range of integers from 0."""
    given = (0, *numbers) if len(numbers) == 1 else numbers
    return draws.fill(stack, lambda row, generator: getattr(row, name)(*given, generator=generator))


def _new(name: str, dtype: torch.dtype | None = None) -> Rule:
    """Return the rule for a random tensor of a size, which is the last argument, after the numbers."""

    def rule(draws: Draws, args: Arguments, kwargs: dict[str, Any]) -> Tensor:
        *given, size = args
        if dtype is not None:
            kwargs.setdefault("dtype", dtype)
        stack = torch.empty(size, **kwargs)
        return _filled(draws, stack, name, given)

    return rule


def _like(name: str) -> Rule:
    """Return the rule for a random tensor like another, which is the first argument; the numbers follow."""

    def rule(draws: Draws, args: Arguments, kwargs: dict[str, Any]) -> Tensor:
        like, *given = args
        stack = torch.empty_like(like, **kwargs)
        return _filled(draws, stack, name, given)

    return rule


def _of_tensors(function: Callable[..., Tensor]) -> Rule:
    def rule(draws: Draws, args: Arguments, kwargs: dict[str, Any]) -> Tensor:
        def draw(*own: Any) -> Tensor:
            return function(*own[:-1], **kwargs, generator=own[-1])

        return torch.stack(draws.each(draw, args))

    return rule


def _bernoulli_in_place(draws: Draws, args: Arguments, kwargs: dict[str, Any]) -> Tensor:
    stack: Tensor = args[0]
    each = draws.each(lambda row, share, generator: torch.empty_like(row).bernoulli_(share, generator=generator), args)
    return stack.copy_(torch.stack(each))


def _multinomial(draws: Draws, args: Arguments, kwargs: dict[str, Any]) -> Tensor:
    weights, *numbers = args
    rows = weights.view(len(draws.lanes), -1, weights.shape[-1])  # of a matrix, vmap makes one of K times as many rows
    return torch.cat(
        draws.each(lambda own, generator: own.multinomial(*numbers, **kwargs, generator=generator), [rows])
    )


def _native_dropout(draws: Draws, args: Arguments, kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
    features, *rest = args

    def draw(own: Tensor, generator: Generator) -> tuple[Tensor, ...]:
        with swapped(generator):
            return torch.native_dropout(own, *rest, **kwargs)

    return tuple(torch.stack(column) for column in zip(*draws.each(draw, [features]), strict=True))


def _randperm(draws: Draws, args: Arguments, kwargs: dict[str, Any]) -> Tensor:
    return draws.permutation(*args, **kwargs)


def _rules() -> dict[Any, Rule]:
    private = private_functions()
    in_place = (
        "bernoulli_.float cauchy_ exponential_ geometric_ log_normal_ normal_ random_ random_.to random_.from uniform_"
    )
    of_tensors = {
        "bernoulli": torch.bernoulli,
        "bernoulli.p": torch.bernoulli,
        "normal.Tensor_float": torch.normal,
        "normal.float_Tensor": torch.normal,
        "normal.Tensor_Tensor": torch.normal,
        "poisson": torch.poisson,
        "_standard_gamma": private.get("_standard_gamma"),
        "_sample_dirichlet": private.get("_sample_dirichlet"),
    }
    rules = {
        **{name: _in_place(name.partition(".")[0]) for name in in_place.split()},
        **{name: _of_tensors(function) for name, function in of_tensors.items() if function is not None},
        "rand": _new("uniform_"),
        "randn": _new("normal_"),
        "normal.float_float": _new("normal_"),
        "randint": _new("random_", torch.int64),
        "randint.low": _new("random_", torch.int64),
        "rand_like": _like("uniform_"),
        "randn_like": _like("normal_"),
        "randint_like": _like("random_"),
        "randint_like.low_dtype": _like("random_"),
        "bernoulli_.Tensor": _bernoulli_in_place,
        "multinomial": _multinomial,
        "native_dropout": _native_dropout,
        "randperm": _randperm,
    }
    return {_operation(name): rule for name, rule in rules.items()}


def _operation(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload or "default")


RULES = _rules()
"""Rule of each random operation, by the operation."""
