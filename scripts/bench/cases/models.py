"""Time of an iteration for a ResNet-8 on 32x32 images and a transformer (2 layers of width 96) on 64 tokens.

Trainyard uploads to MLflow; the plain loop only trains, with the fused Adam. One row keeps freed memory, as Trainyard
does.

**Result:** the hooks and the upload take at most a few percent. The gain comes from the memory that is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import ours
import peers
from measure import Comparison, Session, Table, take_turns
from work import Work


def tables(session: Session) -> Iterator[Table]:
    for kind, title, samples in (
        ("images", "Step of a small ResNet", 3200),
        ("text", "Step of a small transformer", 2560),
    ):
        work = Work(kind, session.size(samples, 128), 32, session.size(1, 1), device=session.device)
        sides = {
            "trainyard, resident data": partial(ours.trainyard, work, resident=True),
            "trainyard, the same DataLoader": partial(ours.trainyard, work, resident=False),
            "plain PyTorch": partial(peers.plain, work, fused=True),
            "plain PyTorch, freed memory kept": partial(peers.kept, work),
        }
        values, failed = take_turns(session, sides, turns=2)
        names = list(sides)
        comparisons = [Comparison(name, "plain PyTorch", 1.02) for name in names[:2]]
        comparisons += [Comparison(name, names[3]) for name in names[:2]]
        yield Table(title, "µs per iteration", values, failed, comparisons)
