"""Time of an iteration: rings data, MLP 2-64-64-2, batch size 64, Adam.

Trainyard runs with its defaults, including checkpoints and the upload to MLflow. The other tools only train, without
logging or a progress bar, on a `DataLoader(TensorDataset)` and with torch's default Adam, except in the rows "fused
Adam". "Freed memory kept" does what `env.keep_memory` does in Trainyard.

**Result:** with the same `DataLoader`, Trainyard is as fast as a plain loop with the fused Adam, or faster. Resident
data halves this time.
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
