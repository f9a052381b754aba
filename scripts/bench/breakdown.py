"""Breakdown of time, in percent: of a step, a start, a sweep, or a step of a stack.

    python scripts/bench/breakdown.py step|startup|sweep|fused [--rounds N] [--here]

`step` and `fused` run the work with more and more parts, alternately: each row is the additional time of one part. The
time is the CPU time of the training thread, so other load does not increase it. `startup` uses Python's report on its
imports (`-X importtime`, which slows the imports by a few percent). `sweep` measures the CPU time of the processes of a
sweep while the sweep runs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import environment
from measure import Session, Turn, take_turns

HERTZ = os.sysconf("SC_CLK_TCK")
STEP = ("batches", "forward", "backward", "optimizer", "the rest of Step", "loop", "default hooks", "MLflow's shipper")
FUSED = ("batches", "forward", "backward", "optimizer", "the rest of Step")
GROUPS = {
    "torch": "torch, and SymPy, which it imports",
    "torchgen": "torch, and SymPy, which it imports",
    "sympy": "torch, and SymPy, which it imports",
    "mpmath": "torch, and SymPy, which it imports",
    "hydra": "Hydra and OmegaConf",
    "omegaconf": "Hydra and OmegaConf",
    "antlr4": "Hydra and OmegaConf",
    "yaml": "Hydra and OmegaConf",
    "numpy": "NumPy",
    "trainyard": "trainyard",
    "hydra_plugins": "trainyard",
    "sklearn": "scikit-learn and SciPy",
    "scipy": "scikit-learn and SciPy",
    "rich": "rich",
}


def step(rounds: int) -> None:
    sides = {
        "the same kernels, called directly": floor,
        **{name: partial(solo, number) for number, name in enumerate(STEP)},
    }
    show(sides, rounds, "µs per iteration")


def fused(rounds: int) -> None:
    for width in (1, 16, 64):
        print(f"K = {width}")
        show(
            {name: partial(group, width, number) for number, name in enumerate(FUSED)},
            rounds,
            "µs per step of all members",
        )


def show(sides: dict[str, Any], rounds: int, unit: str) -> None:
    """Print by how much each side is slower than the one before; an unrelated first side is printed by itself."""
    with tempfile.TemporaryDirectory() as folder:
        session = Session(rounds, quick=False, full=False, device="cpu", folder=Path(folder))
        values, failed = take_turns(session, sides, turns=7, together=True)
    if failed:
        sys.exit(1)
    parts = [name for name in values if name in STEP]
    total = statistics.median(values[parts[-1]])
    print(f"\n| | {unit} | share |\n|---|---:|---:|")
    before = [0.0] * rounds
    for name in parts:
        more = statistics.median(own - less for own, less in zip(values[name], before, strict=True))
        print(f"| {name} | {more:.1f} | {more / total:.0%} |")
        before = values[name]
    print(f"| total | {total:.1f} | 100% |")
    for name in set(values) - set(parts):
        print(f"| {name} | {statistics.median(values[name]):.1f} | {statistics.median(values[name]) / total:.0%} |")


@contextmanager
def floor() -> Iterator[Turn]:
    """Yield the step as plain function calls on resident tensors: no module, no loop, no batch to gather."""
    import torch
    from torch.nn.functional import cross_entropy, linear, relu
    from work import RATE, Work

    from trainyard.data import TensorLoader
    from trainyard.optim.without_dynamo import UnwrappedStep

    work = Work(busy=True)
    batches = list(TensorLoader(work.tensors, work.batch, shuffle=True).batches())
    parameters = list(work.net().parameters())
    w1, b1, w2, b2, w3, b3 = parameters
    update = UnwrappedStep(torch.optim.Adam(parameters, lr=RATE, fused=True))

    def turn() -> float:
        begin = work.now()
        for _ in range(work.epochs):
            for x, y in batches:
                cross_entropy(linear(relu(linear(relu(linear(x, w1, b1)), w2, b2)), w3, b3), y).backward()
                with torch.no_grad():
                    update()
                for parameter in parameters:
                    parameter.grad = None
        return work.each(work.now() - begin)

    yield turn


@contextmanager
def solo(upto: int) -> Iterator[Turn]:
    """Yield a run of the MLP of `run.py --only step`, with the first parts of STEP."""
    import ours
    from work import Work

    work = Work(busy=True)
    if upto >= STEP.index("loop"):
        hooks = {} if upto == STEP.index("loop") else ours.DEFAULT_HOOKS
        with ours.trainyard(work, resident=True, hooks=hooks, uri="" if upto == len(STEP) - 1 else None) as turn:
            yield turn
        return
    with tempfile.TemporaryDirectory() as folder:
        runner = ours.runner(work, Path(folder), {}, resident=True)
        runner.prepare()
        yield partial(pieces, runner, upto, work.epochs)


@contextmanager
def group(width: int, upto: int) -> Iterator[Turn]:
    """Yield steps of K members of the MLP 64-64-64-10 on digits, with the first parts of FUSED; K = 1 is one job."""
    from cases.fused import config

    from trainyard.fused.runner import FusedRunner
    from trainyard.runner import Runner

    configs = [config("MLP", member) for member in range(width)]
    runner = FusedRunner(configs) if width > 1 else Runner.from_cfg(configs[0])
    _ = runner.train_loop, runner.model, runner.optimizer, runner.step
    yield partial(pieces, runner, upto, 10)


def pieces(runner: Any, upto: int, epochs: int) -> float:
    """Return the microseconds per batch of the first parts of STEP."""
    import torch

    step, loader = runner.step, runner.loader("train")
    total, count = len(loader), epochs * len(loader)
    runner.model.train()
    begin = time.thread_time()
    for epoch in range(epochs):
        for index, batch in enumerate(loader.batches(epoch)):
            if upto == 4:
                step(batch, index, total)
                continue
            if upto >= 1:
                loss = step.precision.forward(step.train_step, batch)["loss"]
            if upto >= 2:
                loss.backward(torch.ones_like(loss))
            if upto >= 3:
                with torch.no_grad():
                    step.unwrapped_step()
            if upto >= 2:
                for parameter in step.parameters:
                    parameter.grad = None
    return (time.thread_time() - begin) / count * 1e6


def startup(rounds: int) -> None:
    """Measure the start to the end of the first step, without MLflow's shipper, which is another process."""
    from cases.startup import HOOK, written

    shares: dict[str, list[float]] = defaultdict(list)
    for number in range(rounds + 1):
        with tempfile.TemporaryDirectory() as folder:
            written(Path(folder), "first_step.py", HOOK)
            hook = ["+hook.first._target_=first_step.FirstStep", f"+hook.first.path={folder}/moment"]
            command = [sys.executable, "-X", "importtime", str(environment.ROOT / "train.py"), "tracker=none", *hook]
            path = os.pathsep.join([folder, os.environ["PYTHONPATH"]])
            begin = time.perf_counter()
            done = subprocess.run(
                command, cwd=folder, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True
            )
            wall = time.perf_counter() - begin
        if number == 0:
            continue  # the system's cache was cold
        found: dict[str, float] = defaultdict(float)
        for line in done.stderr.splitlines():
            if line.startswith("import time:") and "[us]" not in line:
                own, _, name = line.removeprefix("import time:").split("|")
                found[GROUPS.get(name.strip().partition(".")[0], "the standard library and others")] += int(own) / 1e6
        found["all but imports"] = wall - sum(found.values())
        for name, seconds in found.items():
            shares[name].append(seconds)
        shares["total"].append(wall)
    total = statistics.median(shares["total"])
    print("| | s | share |\n|---|---:|---:|")
    for name, values in sorted(shares.items(), key=lambda item: (item[0] == "total", -statistics.median(item[1]))):
        print(f"| {name} | {statistics.median(values):.2f} | {statistics.median(values) / total:.0%} |")


def sweep(rounds: int) -> None:
    """Measure 32 jobs, as stacks and one by one: CPU seconds by kind of process."""
    from cases.sweep import Sweep

    for fuse in ("auto", "off"):
        seconds: dict[str, list[float]] = defaultdict(list)
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as folder:
                command = Sweep(32, fuse).command(f"sqlite:///{folder}/mlflow.db")
                begin = time.perf_counter()
                process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                spent: dict[int, tuple[str, float]] = {}
                while process.poll() is None:
                    spent |= processes(process.pid)
                    time.sleep(0.02)
                wall = time.perf_counter() - begin
            kinds: dict[str, float] = defaultdict(float)
            for kind, cpu in spent.values():
                kinds[kind] += cpu
            for kind, cpu in kinds.items():
                seconds[kind].append(cpu)
            seconds["total"].append(sum(kinds.values()))
            seconds["from start to end"].append(wall)
        total = statistics.median(seconds["total"])
        print(f"\nhydra.launcher.fuse={fuse}\n\n| | CPU s | share |\n|---|---:|---:|")
        for name in sorted(
            set(seconds) - {"total", "from start to end"}, key=lambda kind: -statistics.median(seconds[kind])
        ):
            print(
                f"| {name} | {statistics.median(seconds[name]):.1f} | {statistics.median(seconds[name]) / total:.0%} |"
            )
        print(f"| total | {total:.1f} | 100% |")
        print(f"\nFrom start to end: {statistics.median(seconds['from start to end']):.1f} s.")


def processes(root: int) -> dict[int, tuple[str, float]]:
    """Return the kind and the CPU seconds of `root` and of each process below it."""
    parents: dict[int, int] = {}
    found: dict[int, tuple[str, float]] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has ended
        pid = int(folder.name)
        parents[pid] = int(fields[1])
        if not line:
            continue  # it has ended and was not waited for: its kind is unknown
        shipper = "trainyard.track.shipper" in line
        kind = "the command" if pid == root else "the shipper" if shipper else "workers and their server"
        found[pid] = (kind, (int(fields[11]) + int(fields[12])) / HERTZ)

    def below(pid: int) -> bool:
        while pid in parents and pid != root:
            pid = parents[pid]
        return pid == root

    return {pid: what for pid, what in found.items() if below(pid)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = {"step": step, "startup": startup, "sweep": sweep, "fused": fused}
    parser.add_argument("of", choices=kinds, help="what is measured")
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds (default: 5)")
    parser.add_argument("--here", action="store_true", help="use this interpreter, not .venv-bench")
    options = parser.parse_args()
    environment.enter(options.here)
    kinds[options.of](options.rounds)


if __name__ == "__main__":
    main()
