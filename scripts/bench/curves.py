"""Table of learning curves for the benchmark of searches: trains every configuration of three small spaces.

    python scripts/bench/curves.py [--only digits,rings,cnn] [--small] [--share 0/2] [--folder FOLDER]

The configurations are trained in stacks, one for each width, batch size and optimizer. The members of a stack differ in
learning rate, weight decay and seed. Each trained stack is a file in the folder, so a killed command can be repeated
and continues. `--share i/n` trains every n-th stack, from stack i (counted from 0), so n commands can run in parallel.
The command that finds all stacks trained writes `scripts/bench/data/curves.parquet`, with a row for each configuration
and seed.

`--small` uses only the first batch size of each table, which takes the least time. The metadata of the schema contain
the command, the versions, the seeds and the CPU time.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import environment
import numpy as np

EPOCHS = 20
SEEDS = (0, 1, 2)
FILE = Path(__file__).with_name("data") / "curves.parquet"
OPTIMIZERS = {"adamw": ["optim=adamw"], "sgd": ["optim=sgd", "optim.momentum=0.9"]}


@dataclass(frozen=True)
class Grid:
    """The configurations of one table.

    Attributes:
        overrides: what they have in common.
        width: the key of the width; `{width}` in it is replaced.
        widths, batch_sizes, rates, decays: the values.
    """

    overrides: tuple[str, ...]
    width: str
    widths: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    rates: tuple[float, ...]
    decays: tuple[float, ...]


def _rates(count: int) -> tuple[float, ...]:
    return tuple(float(f"{rate:.4g}") for rate in np.geomspace(1e-4, 1.0, count))


DIGITS = ("data=digits", "data.val_fraction=0.4", "data.test_fraction=0")  # 1078 images to train on, 719 to validate
RINGS = ("data=rings", "data.num_samples=1500", "data.noise=0.2", "data.val_fraction=0.6", "data.test_fraction=0")
MLP = "model.hidden=[{width},{width}]"
GRIDS = {
    "rings": Grid(("model=mlp", *RINGS), MLP, (8, 32, 128), (256, 32), _rates(14), (1e-5, 1e-3, 1e-1)),
    "digits": Grid(("model=mlp", *DIGITS), MLP, (8, 32, 128), (256, 32), _rates(14), (1e-5, 1e-3, 1e-1)),
    "cnn": Grid(
        ("model=cnn", *DIGITS), "model.channels=[{width},{double}]", (4, 8), (256, 64), _rates(9), (1e-4, 1e-2)
    ),
}


@dataclass(frozen=True)
class Stack:
    """The members of one program: all learning rates, weight decays and seeds."""

    table: str
    optim: str
    width: int
    batch_size: int

    @property
    def name(self) -> str:
        return f"{self.table}-{self.optim}-{self.width}-{self.batch_size}"

    @property
    def members(self) -> list[tuple[float, float, int]]:
        grid = GRIDS[self.table]
        return list(itertools.product(grid.rates, grid.decays, SEEDS))


def stacks(tables: Sequence[str]) -> Iterator[Stack]:
    """Yield the stacks of some tables."""
    for name in tables:
        grid = GRIDS[name]
        for batch_size, width, optim in itertools.product(grid.batch_sizes, grid.widths, OPTIMIZERS):
            yield Stack(name, optim, width, batch_size)


def train(stack: Stack) -> dict[str, Any]:
    """Train a stack; return the validation of each member after each epoch, and what an epoch of a member takes.

    Returns:
        `accuracy` and `loss`, `[members, epochs]`; `seconds`, a member's share of the processor time of an epoch.
    """
    from omegaconf import OmegaConf

    from trainyard.fused.runner import FusedRunner
    from trainyard.hooks import Hook
    from trainyard.runner import Runner

    class Curves(Hook):
        """Hook that keeps the validation of each member."""

        stackable = True

        def __init__(self) -> None:
            self.values: list[list[tuple[float, float]]] = []
            self.times: list[float] = []

        def before_train(self, runner: Runner) -> None:
            self.times.append(time.process_time())

        def after_val(self, runner: Runner) -> None:
            self.values.append([(own.metrics["val/accuracy"], own.metrics["val/loss"]) for own in runner.members])
            self.times.append(time.process_time())

    base: dict[str, Any] = OmegaConf.to_container(_composed(stack), resolve=True)  # type: ignore[assignment]
    configs = []
    for rate, decay, seed in stack.members:
        own = copy.deepcopy(base)
        own["optim"]["lr"], own["optim"]["weight_decay"], own["seed"] = rate, decay, seed
        configs.append(own)
    runner, hook = FusedRunner(configs), Curves()
    runner.added_hooks["curves"] = hook
    runner.train()
    found = np.array(hook.values, np.float64)  # [epochs, members, 2]
    assert found.shape == (EPOCHS, len(configs), 2), found.shape
    return {
        "accuracy": found[:, :, 0].T,
        "loss": found[:, :, 1].T,
        "seconds": float(np.median(np.diff(hook.times))) / len(configs),
    }


def _composed(stack: Stack) -> Any:
    from hydra import compose, initialize_config_dir

    grid = GRIDS[stack.table]
    overrides = [
        *grid.overrides,
        *OPTIMIZERS[stack.optim],
        grid.width.format(width=stack.width, double=2 * stack.width),
        f"data.batch_size={stack.batch_size}",
        f"loop.max_epochs={EPOCHS}",
        "hook=[]",
        "tracker=none",
        "device=cpu",
        "metric.accuracy.topk=1",
        "~metric.confusion",
        "work_dir=null",
    ]
    with initialize_config_dir(str(environment.ROOT / "conf"), version_base="1.3"):
        return compose("train", overrides)


def write(folder: Path, tables: Sequence[str], file: Path) -> None:
    """Write the table of the stacks that are trained."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, list[Any]] = {}
    cpu = 0.0
    for stack in stacks(tables):
        with np.load(folder / f"{stack.name}.npz") as found:
            cpu += float(found["cpu"])
            for place, (rate, decay, seed) in enumerate(stack.members):
                row = {
                    "table": stack.table, "optim": stack.optim, "width": stack.width, "batch_size": stack.batch_size,
                    "weight_decay": decay, "lr": rate, "seed": seed, "seconds": float(found["seconds"]),
                    "accuracy": found["accuracy"][place].astype(np.float32),
                    "loss": found["loss"][place].astype(np.float32),
                }  # fmt: skip
                for key, value in row.items():
                    columns.setdefault(key, []).append(value)
    curve = pa.list_(pa.float32(), EPOCHS)
    types = {
        "table": pa.dictionary(pa.int8(), pa.string()), "optim": pa.dictionary(pa.int8(), pa.string()),
        "width": pa.int16(), "batch_size": pa.int16(), "weight_decay": pa.float32(), "lr": pa.float32(),
        "seed": pa.int8(), "seconds": pa.float32(), "accuracy": curve, "loss": curve,
    }  # fmt: skip
    arrays = {key: pa.array(columns[key], each) for key, each in types.items()}
    facts = {
        "command": " ".join(["python", "scripts/bench/curves.py", *sys.argv[1:]]),
        "versions": {name: metadata.version(name) for name in ("trainyard", "torch", "numpy")},
        "python": platform.python_version(),
        "seeds": list(SEEDS),
        "epochs": EPOCHS,
        "processor_minutes": round(cpu / 60, 1),
        "fixed": {name: [*GRIDS[name].overrides, GRIDS[name].width] for name in tables},
    }
    file.parent.mkdir(exist_ok=True)
    table = pa.table(arrays).replace_schema_metadata({"made": json.dumps(facts)})
    pq.write_table(table, file, compression="zstd", compression_level=19, use_dictionary=True)
    print(
        f"Wrote {file}: {table.num_rows} rows, {file.stat().st_size / 1e6:.2f} MB; {cpu / 60:.1f} minutes of CPU time"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(GRIDS), help=f"tables to train, of {', '.join(GRIDS)}")
    parser.add_argument("--small", action="store_true", help="use one batch size of each table")
    parser.add_argument("--share", default="0/1", help="i/n: every n-th stack, from stack i")
    parser.add_argument("--folder", type=Path, default=Path("outputs/curves"), help="folder of the trained stacks")
    parser.add_argument("--file", type=Path, default=FILE, help="output file")
    options = parser.parse_args()
    environment.enter(here=True)
    import torch

    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    tables = options.only.split(",")
    if options.small:
        for name in tables:
            GRIDS[name] = replace(GRIDS[name], batch_sizes=GRIDS[name].batch_sizes[:1])
    first, step = map(int, options.share.split("/"))
    for stack in list(stacks(tables))[first::step]:
        file = options.folder / f"{stack.name}.npz"
        if file.exists():
            continue
        begin = time.process_time()
        found = train(stack)
        part = file.with_suffix(".part")
        with part.open("wb") as stream:
            np.savez(stream, **found, cpu=time.process_time() - begin)
        part.replace(file)
        best = found["accuracy"][:, -1].max()
        print(f"{stack.name}: best {best:.4f}, {time.process_time() - begin:.1f} s", flush=True)
    if all((options.folder / f"{stack.name}.npz").exists() for stack in stacks(tables)):
        write(options.folder, tables, options.file)


if __name__ == "__main__":
    main()
