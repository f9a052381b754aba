"""Compiled models on the CPU: time of an iteration with `compile=true` and without it, and the time of the compilation.

The models are those of `models`, on resident data and with the default hooks, without MLflow. `torch.compile` has its
defaults in Trainyard and in the plain loop, which has the fused Adam. The time of an iteration is the median over those
after the first tenth. The time to the first step begins when the training does, and torch is already imported; it
contains the compilation of the forward and the backward pass. The compiler's cache is empty. "Once more" is a new
process that finds the cache of the one before.
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

EAGER, COMPILED, AGAIN = "trainyard", "trainyard, compile=true", "trainyard, compile=true, once more"
PLAIN, PLAIN_COMPILED = "plain PyTorch", "plain PyTorch, torch.compile"


def tables(session: Session) -> Iterator[Table]:
    for kind, model in (("images", "a small ResNet"), ("text", "a small transformer")):
        work = Work(kind, session.size(1600, 320), 32, 1)
        sides = {
            EAGER: partial(cold, session.folder, trainyard, work, False),
            COMPILED: partial(cold, session.folder, trainyard, work, True),
            PLAIN: partial(cold, session.folder, plain, work, False),
            PLAIN_COMPILED: partial(cold, session.folder, plain, work, True),
        }
        figures, failed = several_figures(session.fewer(), sides)
        comparisons = [Comparison(COMPILED, EAGER), Comparison(PLAIN_COMPILED, PLAIN)]
        comparisons += [Comparison(COMPILED, PLAIN_COMPILED)]
        steps = figures.get("step", {})
        yield Table(f"Step of {model}, compiled", "µs per iteration", steps, failed, comparisons)
        first, again = figures.get("first", {}), figures.get("again", {})
        first |= {AGAIN: again[COMPILED]} if COMPILED in again else {}
        comparisons = [Comparison(name, EAGER, None, "difference") for name in (COMPILED, AGAIN)]
        comparisons += [Comparison(PLAIN_COMPILED, PLAIN, None, "difference")]
        yield Table(f"Start of {model}, compiled", "s to the first step", first, failed, comparisons)


def cold(folder: Path, side: Callable[..., list[float]], work: Work, compiled: bool) -> Mapping[str, float]:
    """Run a side in a new process with an empty cache; ours, if compiled, once more with the cache filled."""
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        found = dict(in_a_process(timed, side, work, compiled, cache))
        if compiled and side is trainyard:
            found["again"] = in_a_process(timed, side, work, compiled, cache)["first"]
    return found


def timed(side: Callable[..., list[float]], work: Work, compiled: bool, cache: str) -> Mapping[str, float]:
    """Return the time of an iteration in µs, and the seconds to the end of the first one."""
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
