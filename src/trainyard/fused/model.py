"""Stacked model: K models of one architecture as one, under `torch.vmap`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from trainyard._torch_internals import own_buffers
from trainyard._torch_vmap import sees_operations
from trainyard.errors import Unfusable
from trainyard.fused.draws import Draws
from trainyard.fused.functional import StackedFunctions
from trainyard.fused.lanes import Lanes
from trainyard.fused.numbers import MemberNumbers, Place, number_places
from trainyard.models import call


class StackedModel(nn.Module):
    """K models whose parameters and buffers are stacks `[K, ...]`; every step is one program for all of them.

    Afterwards, the tensors of each of the K models are views of the stacks, so that loading into a model changes the
    stack. All members run the code of the first one; only their tensors differ, and numbers that modules accept as
    tensors (`trainyard.fused.numbers`).

    Args:
        models: models of one architecture, on one device. Tied parameters stay tied, and frozen ones stay frozen.
        own_batches: whether the batches of `train_step` have a leading axis of K members; otherwise all members share a
            batch.
        lanes: the members' random generators. None: all draw different numbers from the generators of the process.
        joinable: whether other models may get lanes (`put`).

    Attributes:
        models: the K models.
        draws_everywhere: whether all operations are checked for random ones, not only known functions, which is slower.

    Raises:
        Unfusable: the models differ in architecture, or in a value that is neither a parameter nor a buffer.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        *,
        own_batches: bool = False,
        lanes: Lanes | None = None,
        joinable: bool = False,
    ) -> None:
        super().__init__()
        self.own_batches = own_batches
        self.draws_everywhere = False
        self.models = list(models)
        self.training = models[0].training
        self._lanes = lanes
        self._draws = None if lanes is None or not sees_operations() else Draws(lanes)
        tells = self._draws is not None and self._draws.way is not None
        places = number_places(models, joinable=joinable) if tells else []
        _check_values(models, places)
        self._templates = (Template(_without_values(models[0])),)  # not a submodule: it has no values of its own
        self._patterns = (_without_values(models[0]),) if joinable else ()  # of what a model is before its training
        self._functions = StackedFunctions(self._draws)
        self._stacks: dict[str, Tensor] = {}
        for name, tensors in _columns(models, "named_parameters").items():
            frozen = not tensors[0].requires_grad
            stack = nn.Parameter(torch.stack([tensor.detach() for tensor in tensors]), requires_grad=not frozen)
            self.register_parameter(name.replace(".", "/"), stack)
            self._stacks[f"model.{name}"] = stack
        for name, tensors in _columns(models, "named_buffers").items():
            buffer = torch.stack(tensors)
            self.register_buffer(name.replace(".", "/"), buffer)
            self._stacks[f"model.{name}"] = buffer
        self._hold_lane()
        self._numbers = MemberNumbers(places, models, self.code.model, self._lane.device)
        self._point(range(self.size))

    @property
    def size(self) -> int:
        """Number of members."""
        return len(self.models)

    @property
    def names(self) -> dict[int, str]:
        """The names of the stacks in the members, by the id of the stack."""
        return {id(stack): name.removeprefix("model.") for name, stack in self._stacks.items()}

    @property
    def draws(self) -> bool:
        """Whether members draw random numbers with the generators of their lanes."""
        return self._draws is not None

    @property
    def code(self) -> Template:
        """Module whose code all members run; its own tensors are on the meta device."""
        return self._templates[0]

    def __deepcopy__(self, memo: dict[int, Any]) -> StackedModel:
        # Copied one by one, the members' tensors would be views of nothing.
        twin = StackedModel(
            copy.deepcopy(self.models, memo),
            own_batches=self.own_batches,
            lanes=self._lanes,
            joinable=bool(self._patterns),
        )
        twin.draws_everywhere = self.draws_everywhere
        return twin.train(self.training)

    def train(self, mode: bool = True) -> StackedModel:
        self.training = mode
        self._templates[0].train(mode)
        return self

    def train_step(self, batch: Any) -> dict[str, Tensor]:
        """Return the losses of every member, each `[K]`, with a graph for their gradients."""
        return self._vmap("train", batch, 0 if self.own_batches else None)  # type: ignore[no-any-return]

    def shared_train_step(self, batch: Any) -> dict[str, Tensor]:
        """Return the losses of every member, each `[K]`, for a batch that all members share."""
        return self._vmap("train", batch, None)  # type: ignore[no-any-return]

    def loss_step(self, batch: Any) -> dict[str, Tensor]:
        """Return the losses of every member, each `[K]`, for a batch of the validation."""
        return self._vmap("loss", batch, None)  # type: ignore[no-any-return]

    def val_step(self, batch: Any) -> Any:
        """Return predictions `[K, ...]` for a batch that all members share."""
        return self._vmap("val", batch, None)

    def test_step(self, batch: Any) -> Any:
        """Return predictions `[K, ...]` for a batch that all members share."""
        return self._vmap("test", batch, None)

    def forward(self, *args: Any, mode: str) -> Any:
        """Return the members' outputs, `[K, ...]`, for inputs that all members share."""
        return self._vmap(mode, args, None)

    def keep(self, index: Sequence[int]) -> None:
        """Keep only these members; the models of the others keep their values as separate tensors."""
        for k in set(range(self.size)) - set(index):
            for tensor in (*self.models[k].parameters(), *self.models[k].buffers()):
                tensor.data = tensor.data.clone()
        self.models = [self.models[k] for k in index]
        for stack in self._stacks.values():
            rows = torch.tensor(index, device=stack.device)
            gradient = None if stack.grad is None else stack.grad[rows]
            stack.grad = None  # has the old shape
            stack.data = stack.data[rows]  # keeps the order of memory, unlike index_select
            stack.grad = gradient
        self._numbers.keep(index)
        self._hold_lane()
        self._point(range(self.size))

    def vacate(self, k: int, *, keeps: bool = True) -> nn.Module:
        """Free a lane: return its model, which keeps its values as separate tensors.

        A copy occupies the row until `put` gives the lane to another model.

        Args:
            k: the lane.
            keeps: whether the model is still needed; otherwise it occupies the row itself.
        """
        model = self.models[k]
        if not keeps:
            return model
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.clone()
        self.models[k] = copy.deepcopy(model)
        self._point([k])
        return model

    def put(self, k: int, model: nn.Module) -> None:
        """Give a lane to a model: its values are copied into the row, and its tensors become views of that.

        Raises:
            Unfusable: the architecture differs from that of the others.
        """
        for pattern in self._patterns:
            for kind in ("named_parameters", "named_buffers"):
                _columns([pattern, model], kind)
            _check_values([pattern, model], [*self._numbers.stacks])
        own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        with torch.no_grad():
            for name, stack in self._stacks.items():
                stack.data[k].copy_(own[name.removeprefix("model.")])
        self._numbers.put(k, model)
        self.models[k] = model
        self._point([k])

    @torch.no_grad()
    def copy_row(self, k: int, source: StackedModel, row: int) -> None:
        """Copy the values of a row of another stack, or of this one, into lane `k`."""
        for stack, other in zip(self._stacks.values(), source._stacks.values(), strict=True):
            stack.data[k].copy_(other.data[row])
        self._numbers.copy_to(self.models[k], source.models[row])
        self._numbers.put(k, self.models[k])

    def _vmap(self, step: str, batch: Any, in_dim: int | None) -> Any:
        run: Callable[..., Any] = vmap(self._one, in_dims=(None, 0, in_dim, 0, 0), randomness="different")
        return run(step, self._stacks, batch, self._lane, self._numbers.stacks)

    def _one(
        self, step: str, tensors: dict[str, Tensor], batch: Any, lane: Tensor, numbers: dict[Place, Tensor]
    ) -> Any:
        draws = self._draws
        if draws is None:
            with self._functions:
                return functional_call(self._templates[0], tensors, (step, batch))
        draws.lane = lane
        own = self._numbers.held(numbers) if numbers else nullcontext()
        with self._functions, draws if self.draws_everywhere else nullcontext(), own:
            return functional_call(self._templates[0], tensors, (step, batch))

    def _hold_lane(self) -> None:
        device = next((stack.device for stack in self._stacks.values()), None)
        self._lane = torch.zeros(self.size, device=device)  # not a buffer: it is no value of a model

    def _point(self, lanes: Iterable[int]) -> None:
        """Make the tensors of the models in these lanes views of the stacks."""
        for name, stack in self._stacks.items():
            path, _, leaf = name.removeprefix("model.").rpartition(".")
            rows = stack.data.unbind(0)
            for k in lanes:
                tensor = getattr(self.models[k].get_submodule(path), leaf)
                tensor.data = rows[k]


class Template(nn.Module):
    """Wrapper of one member's steps by name, so that `functional_call` reaches steps that a model has overridden."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._holders = [
            (buffers, name, f"{path}.{name}".lstrip("."))
            for path, buffers in ((path, own_buffers(module)) for path, module in model.named_modules())
            for name in buffers
        ]

    def forward(self, step: str, batch: Any) -> Any:
        """Run the step, which may change a buffer in place but not replace it, because the new one would be lost.

        Raises:
            Unfusable: a buffer was replaced.
        """
        before = [buffers[name] for buffers, name, _ in self._holders]
        own = getattr(self.model, f"{step}_step", None)
        if own is not None:
            result = own(batch)
        else:
            result = call(self.model, batch, {"train": "loss", "val": "predict", "test": "predict"}.get(step, step))
        for (buffers, name, path), buffer in zip(self._holders, before, strict=True):
            if buffers[name] is not buffer:
                raise Unfusable(f"the model replaces its buffer {path}; buffers must be changed in place (copy_())")
        return result


def _without_values(model: nn.Module) -> nn.Module:
    """Return a copy with parameters and buffers on the meta device. Tied ones stay tied, unlike with `.to("meta")`."""
    computed = [getattr(module, name) for module in model.modules() for name in _computed(module)]
    memo: dict[int, Any] = {id(tensor): tensor.detach().to("meta") for tensor in (*model.buffers(), *computed)}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
    return copy.deepcopy(model, memo)


def _computed(module: nn.Module) -> list[str]:
    """Return the names of attributes that are computed from parameters before each forward pass."""
    hooks = module._forward_pre_hooks.values()
    return [hook.name for hook in hooks if isinstance(hook, WeightNorm | SpectralNorm)]


_PLAIN = (bool, int, float, str, Tensor, np.ndarray, list, tuple)


def _check_values(models: Sequence[nn.Module], own_numbers: Sequence[Place]) -> None:
    """Check that all models have equal values for everything that the shared code reads, except parameters, buffers and
    `own_numbers`.

    Raises:
        Unfusable: a value differs; the message names it.
    """
    modules = [dict(model.named_modules()) for model in models]
    own = {id(tensor) for tensor in (*models[0].parameters(), *models[0].buffers())}
    for path, first in modules[0].items():
        computed = _computed(first)
        for name, value in vars(first).items():
            if name in computed or (path, name) in own_numbers:
                continue
            if isinstance(value, list | tuple) and value and all(id(entry) in own for entry in value):
                continue  # a second list of them, as recurrent layers have
            if isinstance(value, (*_PLAIN, partial)):
                for others in modules[1:]:
                    if path in others and not _is_same(value, vars(others[path]).get(name)):
                        place = f"{path}.{name}".lstrip(".")
                        raise Unfusable(f"the models differ in {place}, which is neither a parameter nor a buffer")


def _is_same(first: Any, second: Any) -> bool:
    if type(first) is not type(second):
        return False
    if isinstance(first, partial):
        return _is_same(_arguments(first), _arguments(second))
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, np.ndarray):
        return np.array_equal(first, second)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(
            _is_same(one, other) for one, other in zip(first, second, strict=True) if isinstance(one, _PLAIN)
        )
    return bool(first == second) or first != first


def _arguments(function: partial[Any]) -> list[Any]:
    return [*function.args, *function.keywords, *function.keywords.values()]


def _columns(models: Sequence[nn.Module], kind: str) -> dict[str, list[Tensor]]:
    """Return each tensor's K values by name.

    Raises:
        Unfusable: the models do not have the same tensors.
    """
    first: dict[str, Tensor] = dict(getattr(models[0], kind)())
    columns: dict[str, list[Tensor]] = {name: [] for name in first}
    for model in models:
        own: dict[str, Tensor] = dict(getattr(model, kind)())
        if own.keys() != first.keys():
            names, tensors = ", ".join(sorted(own.keys() ^ first.keys())), kind.removeprefix("named_")
            raise Unfusable(f"only some of the models have these {tensors}: {names}")
        for name, tensor in own.items():
            of_first = first[name]
            if (tensor.shape, tensor.dtype) != (of_first.shape, of_first.dtype):
                raise Unfusable(f"the models differ in {name}: {_shown(tensor)} and {_shown(of_first)}")
            if tensor.requires_grad != of_first.requires_grad:
                raise Unfusable(f"the models differ in {name}, which is frozen in only some of them")
            columns[name].append(tensor)
    return columns


def _shown(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
