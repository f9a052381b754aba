"""Several devices: the cost of DDP on one rank, and the gain from more devices.

"One rank" compares training with and without DDP, with the models of the cases `step` and `models`. "Scaling" is
`train.py strategy=ddp` with a ResNet on the digits data, with the same total batch size, from the first point of the
journal to the last. A device is a process with one thread.

**Result:** DDP takes a large share of a small model's iteration, and a small share of a larger model's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import environment
import ours
import torch
from measure import Comparison, Session, Table, take_turns, take_turns_here
from work import Work


def tables(session: Session) -> Iterator[Table]:
    for title, work in (
        ("One rank, small MLP", Work(epochs=session.size(20, 2), device=session.device)),
        ("One rank, small ResNet", Work("images", session.size(1280, 128), 32, 1, device=session.device)),
    ):
        sides = {
            "single": partial(ours.trainyard, work, resident=True, uri=None),
            "DDP, one rank": partial(ours.trainyard, work, resident=True, uri=None, strategy="ddp"),
        }
        values, failed = take_turns(session, sides, turns=2)
        yield Table(title, "µs per iteration", values, failed, [Comparison("DDP, one rank", "single")])

    most = torch.cuda.device_count() if session.device == "cuda" else len(os.sched_getaffinity(0))
    counts = [count for count in (1, 2, 4, 8) if count <= most]
    turns = {devices(count): partial(scaled, session, count) for count in counts}
    values, failed = take_turns_here(session, turns, warm=False)
    comparisons = [Comparison(name, devices(1)) for name in list(turns)[1:]]
    yield Table("Scaling: ResNet, batches of 256", "µs per iteration", values, failed, comparisons)


def devices(count: int) -> str:
    return f"{count} device{'s' * (count > 1)}"


def scaled(session: Session, count: int) -> float:
    """Return the microseconds per iteration of a training on `count` devices."""
    with tempfile.TemporaryDirectory(dir=session.folder) as folder:
        iterations = session.size(60, 20)
        command = [
            *(sys.executable, str(environment.ROOT / "train.py"), "strategy=ddp", f"strategy.devices={count}"),
            *("model=resnet", "data.batch_size=256", "loop=iter", f"loop.max_iters={iterations}", "tracker=none"),
            *(f"device={session.device}", "hook=default", "loop.val_interval=1000", f"hydra.run.dir={folder}/run"),
        ]
        threads = {"OMP_NUM_THREADS": "1"} if session.device == "cpu" else {}
        subprocess.run(command, cwd=folder, env=os.environ | threads, check=True, capture_output=True)
        journal = Path(folder, "run", "metrics.jsonl").read_text(encoding="utf-8")
        records = [json.loads(line) for line in journal.splitlines()]
        points = [(record["time"], record["step"]) for record in records if "train/loss" in record.get("values", {})]
        (begin, first), (end, last) = points[0], points[-1]
        return float(1e6 * (end - begin) / (last - first))
