"""Helpers for sharded tensors, for code that expects complete ones."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

# Importing torch.distributed.tensor takes half a second: it is imported only where such tensors exist.


def has_share(value: Any) -> bool:
    """Return whether it is a `torch.distributed.tensor.DTensor`."""
    return isinstance(value, Tensor) and hasattr(value, "device_mesh")


def is_sharded(state: Any) -> bool:
    """Return whether there is a sharded tensor in a nest of dicts, lists and tuples."""
    if isinstance(state, Mapping):
        return any(is_sharded(entry) for entry in state.values())
    if isinstance(state, list | tuple):
        return any(is_sharded(entry) for entry in state)
    return has_share(state)


def class_of(module: nn.Module) -> type[nn.Module]:
    """Return the class of a module; of a module that `fully_shard` has changed, the class before the change."""
    kinds = type(module).__mro__
    for kind, below in pairwise(kinds):
        if kind.__name__ == "FSDPModule" and kind.__module__.startswith("torch."):
            return below
    return type(module)


def whole(tensor: Tensor) -> Tensor:
    """Return the tensor itself, or the complete tensor of a sharded one, for which every rank must call this
    function."""
    full: Tensor = tensor.full_tensor() if has_share(tensor) else tensor  # type: ignore[attr-defined]
    return full


def local(tensor: Tensor) -> Tensor:
    """Return the tensor itself, or this rank's share of a sharded one."""
    own: Tensor = tensor.to_local() if has_share(tensor) else tensor  # type: ignore[attr-defined]
    return own


def on_host(share: Tensor, own: Any) -> Tensor:
    """Return a copy on the CPU of this rank's part of `own`, as a sharded tensor."""
    from torch.distributed.tensor import DTensor

    mesh = own.device_mesh if own.device_mesh.device_type == "cpu" else _host_mesh(own.device_mesh.size())
    found: Tensor = DTensor.from_local(
        share, mesh, own.placements, run_check=False, shape=own.shape, stride=own.stride()
    )
    return found


@cache
def _host_mesh(size: int) -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", (size,))


def like(value: Tensor, own: Any) -> Tensor:
    """Return this rank's share of a complete tensor if `own` is sharded; else the tensor itself."""
    if not has_share(own) or has_share(value):
        return value
    from torch.distributed.tensor import distribute_tensor

    moved = value.to(device=own.device, dtype=own.dtype)
    found: Tensor = distribute_tensor(moved, own.device_mesh, own.placements, src_data_rank=None)
    return found


def load_state(model: nn.Module, weights: Mapping[str, Any]) -> None:
    """Call `model.load_state_dict` with complete tensors, for a model that may be sharded."""
    own = model.state_dict()
    model.load_state_dict({name: like(value, own.get(name)) for name, value in weights.items()})


def optimizer_state(state: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """Return a saved state of an optimizer, sharded as its parameters are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not any(has_share(parameter) for parameter in parameters):
        return state
    entries = {
        index: {key: _like_parameter(value, parameters[index]) for key, value in entry.items()}
        for index, entry in state["state"].items()
    }
    return {**state, "state": entries}


def _like_parameter(value: Any, parameter: Tensor) -> Any:
    same = isinstance(value, Tensor) and value.shape == parameter.shape
    return like(value, parameter) if same else value
