"""Input, target and device of a batch.

Models and metrics read a batch only through these functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from trainyard.errors import TrainyardError, counted

TARGET_KEYS = ("target", "targets", "label", "labels", "y")
"""Keys under which a mapping can contain its target; the first existing key is used."""
ITEMS = "num_items"
"""Key under which a model returns, in addition to its losses, the number of items over which the losses are
averaged."""


def input_of(batch: Any) -> Any:
    """Return the input of a batch; None if there is none.

    The input is the first element of a tuple or list, the first key of a mapping that is not a target, or the batch
    itself.
    """
    if isinstance(batch, Mapping):
        return batch.get(_input_key(batch))
    if isinstance(batch, (tuple, list)):
        return batch[0] if batch else None
    return batch


def with_changed_input(batch: Any, change: Callable[[Any], Any]) -> Any:
    """Return the batch with `change(input)` instead of its input (`input_of`); all other entries are shared.

    A mapping without an input is returned unchanged.
    """
    if isinstance(batch, Mapping):
        name = _input_key(batch)
        return batch if name is None else {**batch, name: change(batch[name])}
    if isinstance(batch, (tuple, list)):
        return (change(batch[0]), *batch[1:])
    return change(batch)


def target_of(batch: Any) -> Any:
    """Return the target of a batch: the last element of a tuple or list of two or more, or a mapping's target key.

    The target of a batch of graphs (`torch_geometric.data.Batch`) is its `y`.

    Raises:
        TrainyardError: the batch has no target.
    """
    if isinstance(batch, (tuple, list)) and len(batch) > 1:
        return batch[-1]
    if isinstance(batch, Mapping):
        for key in TARGET_KEYS:
            if key in batch:
                return batch[key]
    if is_graph(batch) and batch.y is not None:
        return batch.y
    raise no_target(batch)


def is_graph(batch: Any) -> bool:
    """Return whether this is a batch of graphs of `torch_geometric`, which is recognized by its attributes."""
    return all(hasattr(type(batch), name) for name in ("num_nodes", "num_edges", "to")) and hasattr(batch, "y")


def split_target(args: Sequence[Any], named: Mapping[str, Any]) -> tuple[Sequence[Any], Mapping[str, Any], Any]:
    """Split the arguments of `forward(*args, **named)` into (positional inputs, named inputs, target or None).

    The last of two or more positional arguments is the target; a single argument is an input. Among named arguments,
    the target has one of the target keys. If one other argument remains, it is the input, with any name. Graphs are an
    input with a target.
    """
    if len(args) == 1 and is_graph(args[0]):
        return args, named, args[0].y
    if len(args) > 1:
        return args[:-1], named, args[-1]
    if not named:
        return args, named, None
    for key in TARGET_KEYS:
        if key in named:
            target = named[key]
            named = {name: value for name, value in named.items() if name != key}
            break
    else:
        target = None
    if not args and len(named) == 1:
        return tuple(named.values()), {}, target
    return args, named, target


def aligned(target: Any, output: Any) -> Any:
    """Return a floating-point target in the shape of the output if they differ only in a last axis of size 1.

    `[B]` and `[B, 1]` contain the same numbers, but a comparison would broadcast them to `[B, B]`.
    """
    if not isinstance(target, Tensor) or not isinstance(output, Tensor) or not target.is_floating_point():
        return target
    if target.shape == output.shape[:-1] and output.shape[-1:] == (1,):
        return target.unsqueeze(-1)
    if output.shape == target.shape[:-1] and target.shape[-1:] == (1,):
        return target.squeeze(-1)
    return target


def samples(batch: Any) -> int:
    """Return the number of samples in a batch.

    This is the number of its graphs, otherwise the length of its first tensor, otherwise of its first list, otherwise
    1.
    """
    if is_graph(batch):
        return int(getattr(batch, "num_graphs", 1))
    parts = list(_parts(batch))
    lengths = [len(part) for part in parts if isinstance(part, Tensor) and part.ndim]
    return next(iter([*lengths, *(len(part) for part in parts if isinstance(part, list))]), 1)


def samples_of_each(batch: Any) -> int:
    """Return the number of samples that each member has in a batch `[K, B, ...]` of a stack."""
    return next((part.shape[1] for part in _parts(batch) if isinstance(part, Tensor) and part.ndim > 1), 1)


def _parts(batch: Any) -> Iterable[Any]:
    return batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else [batch]


class NoTargetError(TrainyardError):
    """A batch has no target."""


def no_target(batch: Any) -> NoTargetError:
    """Return the error for a batch in which no target is found.

    A sequence of one element is described as this element: a model cannot distinguish them in its arguments.
    """
    if isinstance(batch, (tuple, list)) and len(batch) == 1:
        batch = batch[0]
        what = f"consists of a single {type(batch).__name__}"
    elif isinstance(batch, Mapping):
        keys = f"the key{'' if len(batch) == 1 else 's'} {', '.join(map(str, batch))}"
        what = f"is a mapping with {keys}" if batch else "is an empty mapping"
    elif isinstance(batch, (tuple, list)):
        what = f"is a {type(batch).__name__} with {counted(len(batch), 'element')}"
    else:
        what = f"consists of a single {type(batch).__name__}"
    if is_graph(batch):
        return NoTargetError("The batch has no target: its graphs have no y.")
    return NoTargetError(
        f"The batch has no target: it {what}. The target must be the last element of a tuple or list of at least "
        f"two elements, or have one of the keys {', '.join(TARGET_KEYS)}."
    )


def lies_on(batch: Any, device: torch.device) -> bool:
    """Return whether a batch is a tuple of tensors that are already on `device`, such as the batches of a resident
    loader."""
    if type(batch) is not tuple:
        return False
    for item in batch:  # noqa: SIM110 -- a generator would cost as much as what this saves in each step
        if type(item) is not Tensor or item.device != device:
            return False
    return True


def to_device(batch: Any, device: torch.device) -> Any:
    """Move every tensor in `batch`, at any depth, to `device`; a tensor that is already on the device is not changed.

    Tuples, named tuples, lists and mappings are traversed; other objects with a `to` method are moved by this method;
    all other objects are not changed.
    """
    if isinstance(batch, Tensor):
        # From pinned memory the copy then overlaps with the host; towards the CPU it would not be safe.
        return batch if batch.device == device else batch.to(device, non_blocking=device.type == "cuda")
    if type(batch) is tuple or type(batch) is list:
        return type(batch)([to_device(item, device) for item in batch])
    if type(batch) is dict:
        return {key: to_device(value, device) for key, value in batch.items()}
    if hasattr(batch, "to"):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(item, device) for item in batch))
    return batch


def joined(parts: Sequence[Any]) -> Any:
    """Return the outputs for several batches as one."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts)) if first.ndim else torch.stack(list(parts))
    if isinstance(first, Mapping):
        return {name: joined([part[name] for part in parts]) for name in first}
    if isinstance(first, tuple):
        return tuple(joined(list(each)) for each in zip(*parts, strict=True))
    return list(chain.from_iterable(parts)) if isinstance(first, list) else list(parts)


def _input_key(batch: Mapping[Any, Any]) -> Any:
    return next((key for key in batch if key not in TARGET_KEYS), None)
