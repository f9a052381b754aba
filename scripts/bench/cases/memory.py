"""Peak memory (resident set) of a process, from its start to the end of the MLP's training.

The imported libraries use most of the memory. Trainyard's shipper is a separate process and has its own row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from measure import Session, Side, Table, Turn, compared, take_turns

PEERS = {"plain PyTorch": "plain", "MMEngine": "mmengine", "Lightning": "lightning", "ignite": "ignite"}


def tables(session: Session) -> Iterator[Table]:
    resident, same = "trainyard, resident data", "trainyard, the same DataLoader"
    sides: dict[str, Side] = {
        resident: partial(peak, "ours", "trainyard", resident=True),
        same: partial(peak, "ours", "trainyard", resident=False),
        "trainyard's shipper": shipper,
        **{name: partial(peak, "peers", side) for name, side in PEERS.items()},
        "accelerate": partial(peak, "peers", "accelerate"),
    }
    values, failed = take_turns(session.fewer(), sides, turns=1, warm=False)
    others = [name for name in sides if "trainyard" not in name]
    yield Table("Peak memory", "MB", values, failed, compared(dict.fromkeys(others), resident))


@contextmanager
def peak(module: str, side: str, **arguments: Any) -> Iterator[Turn]:
    """Yield the side's turn; the side is imported only here, in its process."""
    from work import Work

    make: Callable[..., AbstractContextManager[Turn]] = getattr(import_module(module), side)
    with make(Work(epochs=2), **arguments) as train:

        def turn() -> float:
            train()
            return most("self")

        yield turn


@contextmanager
def shipper() -> Iterator[Turn]:
    import tempfile

    import ours
    from work import Work

    from trainyard.track import MLflowTracker

    with tempfile.TemporaryDirectory() as name, ours.tracking(Path(name), "") as tracker:

        def turn() -> float:
            assert isinstance(tracker, MLflowTracker), "no MLflow"
            ours.runner(Work(epochs=2), Path(name), ours.DEFAULT_HOOKS, resident=True, tracker=tracker).train()
            assert tracker._process is not None
            return most(tracker._process.pid)

        yield turn


def most(pid: int | str) -> float:
    """Return the high-water mark of a process's resident set, in MB."""
    return _status(pid, "VmHWM")


def resident(pid: int | str) -> float:
    """Return a process's resident set, in MB."""
    return _status(pid, "VmRSS")


def _status(pid: int | str, key: str) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024
