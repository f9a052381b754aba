"""State of each rank in the checkpoint of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from trainyard.data.transfer import apply
from trainyard.distributed import Strategy
from trainyard.distributed.shares import is_sharded


def with_all(state: dict[str, Any], strategy: Strategy) -> dict[str, Any]:
    """Return the state with the parts of all other ranks: generators, hooks, pending gradients, reading position."""
    if strategy.world_size == 1:
        return state
    own = {key: state[key] for key in ("random", "hooks", "step", "data") if not is_sharded(state[key])}
    own = apply(lambda tensor: tensor.detach().cpu(), own)
    return {**state, "ranks": strategy.gather(own)}


def of_one(state: dict[str, Any], strategy: Strategy) -> dict[str, Any]:
    """Return the state as this rank loads it, whatever strategy and number of ranks saved it.

    With the same ranks, each rank loads its own pending gradients; otherwise, all ranks load their mean. The generators
    of additional ranks are seeded.
    """
    saved = state.get("ranks", [])
    same = len(saved) == strategy.world_size
    own = dict(saved[strategy.rank]) if same else {}
    if not (same and strategy.own_gradients):
        own["step"] = _mean_gradients(state["step"], [entry["step"] for entry in saved if "step" in entry])
    taken = {**state, **own}
    if strategy.rank > 0 and not same:
        del taken["random"]
    return taken


def _mean_gradients(step: dict[str, Any], steps: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the state of a step with the mean of several ranks' gradients."""
    gradients = [each.get("gradients") for each in steps]
    if not gradients or gradients[0] is None:
        return step
    means = [None if parts[0] is None else torch.stack(parts).mean(0) for parts in zip(*gradients, strict=True)]
    return {**step, "gradients": means}
