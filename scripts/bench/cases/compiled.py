"""Time of an iteration on the CPU with and without `compile=true`, and time of the compilation.

The models are those of the case `models`, compiled with the default arguments. Trainyard reads resident data, without
MLflow. The plain loop reads a `DataLoader` and uses the fused Adam. The time of an iteration is the median over all but
the first tenth. The time to the first step begins with the training, after torch is imported. "Once more" is a new
process with a filled compiler cache; the start with an empty cache is measured once.

**Result:** the compilation pays off after some thousand iterations.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from time import perf_counter

from measure import Comparison, Session, Table, in_a_process, several_figures
from work import RATE, Work

Side = Callable[[Work, bool], list[float]]
EAGER, COMPILED = "trainyard", "trainyard, compile=true"
PLAIN, PLAIN_COMPILED = "plain PyTorch", "plain PyTorch, torch.compile"
AGAIN = "{}, once more"


def tables(session: Session) -> Iterator[Table]:
    models = {"images": "a small ResNet", "text": "a small transformer"}
    for kind in ["text"] if session.quick else models:
        work = Work(kind, session.size(1600, 320), 32, 1)
        sides = {
            EAGER: partial(eager, trainyard, work),
            COMPILED: partial(compiled, trainyard, work, session.folder / f"{kind}_trainyard"),
        }
        pairs = [(COMPILED, EAGER)]
        if not session.quick:
            sides[PLAIN] = partial(eager, plain, work)
            sides[PLAIN_COMPILED] = partial(compiled, plain, work, session.folder / f"{kind}_plain")
            pairs += [(PLAIN_COMPILED, PLAIN), (COMPILED, PLAIN_COMPILED)]
        figures, failed = several_figures(session.fewer(), sides)
        comparisons = [Comparison(*pair) for pair in pairs]
        step = figures.get("step", {})
        yield Table(f"Step of {models[kind]}, compiled", "µs per iteration", step, failed, comparisons)
        first = figures.get("first", {})
        first |= {AGAIN.format(name): values for name, values in figures.get("again", {}).items()}
        comparisons = [
            Comparison(form.format(name), other, None, "difference")
            for name, other in pairs[:2]
            for form in ("{}", AGAIN)
        ]
        yield Table(f"Start of {models[kind]}, compiled", "s to the first step", first, failed, comparisons)


def eager(side: Side, work: Work) -> Mapping[str, float]:
    """Run a side without compilation in a new process."""
    return in_a_process(timed, side, work, False, "")


def compiled(side: Side, work: Work, cache: Path) -> Mapping[str, float]:
    """Run a side with compilation in a new process, with the cache filled; in the first round, fill it before."""
    first = {}
    if not cache.exists():
        first["first"] = in_a_process(timed, side, work, True, str(cache))["first"]
        if not cache.exists():
            raise RuntimeError("the compiler has written no cache")
    again = in_a_process(timed, side, work, True, str(cache))
    return {"step": again["step"], "again": again["first"], **first}


def timed(side: Side, work: Work, compiled: bool, cache: str) -> Mapping[str, float]:
    """Return the time of an iteration in µs, and the seconds to the end of the first one."""
    if compiled:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
    begin, *ends = side(work, compiled)
    took = [end - start for start, end in pairwise(ends[work.iterations // 10 :])]
    return {"step": 1e6 * statistics.median(took), "first": ends[0] - begin}


def trainyard(work: Work, compiled: bool) -> list[float]:
    """Train; return the time at the beginning, and that at the end of each iteration."""
    import ours

    from cases.stall import Mark

    mark = Mark(0)
    with tempfile.TemporaryDirectory() as folder:
        hooks = {**ours.DEFAULT_HOOKS, "mark": mark}
        runner = ours.runner(work, Path(folder), hooks, resident=True, compile=compiled)
        begin = perf_counter()
        runner.train()
    return [begin, *mark.moments]


def plain(work: Work, compiled: bool) -> list[float]:
    """Train in a loop written by hand, with the fused Adam."""
    import torch

    loader, criterion, net = work.loader(), work.loss, work.net()
    model = torch.compile(net) if compiled else net
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE, fused=True)
    net.train()
    moments = [perf_counter()]
    for _ in range(work.epochs):
        for x, y in loader:
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            optimizer.step()
            moments.append(perf_counter())
    return moments
