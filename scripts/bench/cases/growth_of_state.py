"""Growth with the size of a checkpoint: the parameters and Adam's two moments, of MLPs with up to 22 large layers.

There are no other hooks than the checkpoint hook. The stall is its median time in an iteration that saves, after the
previous file is written. The memory is the growth of the resident set from the creation of the Runner to its peak, as a
multiple of the file's size. It includes the state, the gradients (a third of the state) and the copy. A run is resumed,
or started at 0, in a new process, from the creation of the Runner to the end of the first step. The two largest sizes
are measured once.

**Result:** a stall is about 0.1 s per GB. A process needs three to four times the size of a large checkpoint.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from measure import Comparison, Session, Table, in_a_process, several_figures
from work import Work

INTERVAL = 2


@dataclass(frozen=True)
class Size:
    """Size of a network, and the number of times that it is saved."""

    width: int
    layers: int
    saves: int

    @property
    def work(self) -> Work:
        return Work(
            samples=4 * INTERVAL * self.saves, batch=4, epochs=1, hidden=(self.width,) * self.layers, features=64
        )


SMALL = {"4 MB": Size(384, 3, 4), "100 MB": Size(2048, 3, 4)}
LARGE = {"1 GiB": Size(4224, 6, 2), "4 GiB": Size(4128, 22, 2)}


def tables(session: Session) -> Iterator[Table]:
    figures: dict[str, dict[str, list[float]]] = {}
    failed: dict[str, str] = {}
    for rounds, sizes in ((session.fewer(), SMALL), (session.once(), {} if session.quick else LARGE)):
        found, missing = several_figures(
            rounds, {name: partial(measured, session.folder, size) for name, size in sizes.items()}
        )
        for figure, values in found.items():
            figures.setdefault(figure, {}).update(values)
        failed |= missing
    names = [*SMALL, *({} if session.quick else LARGE)]
    comparisons = [Comparison(name, names[0]) for name in names[1:]]
    yield Table("Stall against the size", "ms per save", figures.get("stall", {}), failed, comparisons)
    yield Table("Peak memory against the size", "times the file's size", figures.get("memory", {}), failed)
    seconds = {name: figures.get("resumed", {}).get(name, []) for name in names if name not in failed}
    seconds |= {f"{name}, started at 0": figures["begun"][name] for name in seconds}
    comparisons = [Comparison(name, f"{name}, started at 0", None, "difference") for name in names]
    yield Table("Resuming against the size", "s to the first step", seconds, failed, comparisons)


def measured(folder: Path, size: Size) -> Mapping[str, float]:
    """Train, begin and resume runs of one size, each in a process of its own; the files are removed."""
    name = tempfile.mkdtemp(dir=folder)
    try:
        found = dict(in_a_process(save, size, name))
        for kind in ("resumed", "begun"):
            found |= in_a_process(first_step, size, name, kind)
        return found
    finally:
        shutil.rmtree(name)


def hooks(interval: int) -> dict[str, Any]:
    """Return the checkpoint hook that saves at this interval, and neither the best state nor the last one."""
    keep = {"max_keep": 1, "save_best": False, "save_last": False}
    return {"checkpoint": {"_target_": "trainyard.hooks.Checkpoint", "interval": interval, "by": "iter", **keep}}


def make(size: Size, work_dir: str, hooks: Mapping[str, Any], length: int, *, resume: bool = False) -> Any:
    import ours

    from trainyard.models import Supervised
    from trainyard.runner import IterBasedTrainLoop, Runner

    return Runner(
        model=Supervised(size.work.net()),
        data=ours.data(size.work, resident=False),
        optim=ours.ADAM,
        hooks=hooks,
        loop=IterBasedTrainLoop(length),
        device="cpu",
        work_dir=work_dir,
        resume=resume,
    )


def save(size: Size, folder: str) -> Mapping[str, float]:
    """Train with checkpoints; return the stall of a save in ms, and the memory."""
    import ours  # noqa: F401 - so that the memory before has what it imports

    from cases.memory import most, resident
    from cases.stall import Mark
    from trainyard.hooks import Hook

    class Settled(Hook):
        """Hook that waits until nothing is being written, before the time of the checkpoint hook begins."""

        priority = 88

        def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any, outputs: Any) -> None:
            runner.dispatch.hooks["checkpoint"].wait()

    before_save, after_save = Mark(89), Mark(91)  # the checkpoint hook has priority 90
    marks = {"settled": Settled(), "before": before_save, "after": after_save}
    before = resident("self")
    make(size, f"{folder}/run", {**hooks(INTERVAL), **marks}, INTERVAL * size.saves).train()
    memory = most("self") - before
    took = [end - begin for begin, end in zip(before_save.moments, after_save.moments, strict=True)]
    (file,) = Path(folder, "run", "checkpoints").glob("*.pt")
    return {
        "stall": 1e3 * statistics.median(took[INTERVAL - 1 :: INTERVAL]),
        "memory": memory * 2**20 / file.stat().st_size,
    }


def first_step(size: Size, folder: str, kind: str) -> Mapping[str, float]:
    """Return the seconds from creating the Runner to the end of its first step."""
    from time import perf_counter

    from cases.stall import Mark

    resume = kind == "resumed"
    done = INTERVAL * size.saves if resume else 0
    mark = Mark(0)
    begin = perf_counter()
    work_dir = f"{folder}/run" if resume else f"{folder}/begun"
    runner = make(size, work_dir, {"first": mark, **hooks(done + 2)}, done + 1, resume=resume)
    runner.train()
    assert (runner.iter, len(mark.moments)) == (done + 1, 1), "the run did not go on where it was"
    return {kind: mark.moments[0] - begin}
