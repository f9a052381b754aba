"""Time of an iteration: rings data, MLP 2-64-64-2, batch size 64, Adam.

Trainyard runs with its defaults: a journal with a point every ten iterations, checkpoints, and a process that uploads
the points to MLflow. The other tools only train. Each of them reads the same `DataLoader(TensorDataset)`, with logging,
checkpoints and progress bar turned off. In the row "resident data", Trainyard gathers batches from tensors in memory,
as with `data=digits` and `data=arrays`. In the row "the same DataLoader", Trainyard uses the loader of the other tools.
Each tool uses Adam as in a typical program: `torch.optim.Adam(...)` in the scripts, and `fused=true` in Trainyard's
config. Two rows are plain loops with the fused Adam. One of them also keeps the memory that a step frees, as Trainyard
does (`env.keep_memory`).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import ours
import peers
from measure import Session, Table, compared, take_turns
from work import Work

FUSED = "plain PyTorch, fused Adam"


def tables(session: Session) -> Iterator[Table]:
    work = Work(epochs=session.size(20, 2), device=session.device)
    sides = {
        "trainyard, resident data": partial(ours.trainyard, work, resident=True),
        "trainyard, the same DataLoader": partial(ours.trainyard, work, resident=False),
        "plain PyTorch": partial(peers.plain, work),
        FUSED: partial(peers.plain, work, fused=True),
        "plain PyTorch, fused Adam, freed memory kept": partial(peers.kept, work),
        **{name: partial(peer, work) for name, peer in peers.PEERS.items()},
    }
    values, failed = take_turns(session, sides, turns=2)
    resident, same = list(sides)[:2]
    reach = {"plain PyTorch": 0.48, FUSED: 0.45, "MMEngine": 0.33, "Lightning": 0.31}
    others = {name: None for name in sides if name not in (resident, same)}
    comparisons = compared(others, resident, reach) + compared(others, same, {"plain PyTorch": 1.03, FUSED: 0.97})
    yield Table("Step of a small MLP", "µs per iteration", values, failed, comparisons)
