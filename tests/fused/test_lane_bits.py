"""The bits of a lane: they follow from what it holds, its row and the width, not from the members beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from lane_jobs import OPTIMS, SCHEDULES, Points, config

from trainyard.fused.feed import LaneJob, LaneQueue
from trainyard.fused.runner import FusedRunner


class StaysOpen(LaneQueue):
    """Feed of jobs, whose free lanes stay."""

    closed = False

    def take(self, count: int, *, wait: bool) -> Sequence[LaneJob]:
        self.closed = wait and not self._waiting
        return super().take(count, wait=wait)


@pytest.mark.parametrize("name", OPTIMS)
def test_the_bits_of_a_lane_do_not_depend_on_its_neighbours(name: str) -> None:
    torch.set_default_dtype(torch.float32)

    def job(seed: int, epochs: int) -> dict[str, Any]:
        optim = OPTIMS[name] | {"_partial_": True, "lr": OPTIMS[name]["lr"] * (1 + seed)}
        if name == "adam":
            optim |= {"weight_decay": 0.0 if seed == 1 else 0.01 * seed, "betas": [0.9 - 0.1 * (seed // 2), 0.99]}
        more = {"schedule": SCHEDULES["by epoch"], "clip_grad_norm": 0.1 * (1 + seed), "data": {"_target_": Points}}
        return config(seed, epochs, optim=optim, **more)

    crowded = FusedRunner([job(0, 2), job(1, 3), job(2, 3)], feed=StaysOpen([job(3, 4)]))
    crowded.train()
    alone = FusedRunner([None, job(1, 3), None], feed=StaysOpen([]))
    alone.train()
    one = next(member for member in crowded.all_members if member.seed == 1)
    for own, other in ((one.model, alone.all_members[0].model), (one.eval_model, alone.all_members[0].eval_model)):
        expected = other.state_dict()
        for key, tensor in own.state_dict().items():
            assert torch.equal(tensor, expected[key]), key
