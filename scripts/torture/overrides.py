"""Commands whose overrides are mutated: each ends in one paragraph, or trains."""

from __future__ import annotations

import importlib
import sys
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import child
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from runs import PRELOAD, ROOT
from trials import FaultError, Part, Trial

from trainyard import app
from trainyard.config.hydra_versions import VERSION_BASE

SMALL = (
    *("data=rings", "data.num_samples=60", "data.batch_size=16", "model=mlp", "model.hidden=[4]"),
    *("loop.max_epochs=1", "tracker=none", "device=cpu", "hydra.run.dir=run"),
)
VALUES = (
    *("null", "''", "-1", "0", "1.5", "3", "1e-3", "nan", "inf", "-inf", "1e400", "true", "abc", "auto", "cpu"),
    *("[]", "{}", "[1,a]", "[0.9]", "[[1]]", "{a: 1}", "{_target_: nope.Nope}", "{_target_: builtins.dict}"),
    *("'???'", "${seed}", "${nope}", "${oc.env:NOPE}", "'a b'", "'é'", "'a/b'", "'%d'", "0x10", "1_0", "'\\n'"),
)
TARGETS = ("os.getcwd", "torch.nn.Linear", "nope.Nope", "torch.optim.Adam", "builtins.dict", "torch", "", "a..b", "1")
BROKEN = (
    *("optim.lr", "optim.lr=", "=3", "optim.lr=[1,", "optim.lr={a", "a=b=c", "optim.lr='x", "optim..lr=1", "~", "+"),
    *("optim@=adam", "optim=", "model=[mlp", "+model/nope=x", "hydra/launcher=nope", "hydra.run.dir=", "seed=1,2"),
    *(
        "lr=0.1",
        "batch_size=3",
        "epochs=3",
        "optim.lr=interval(0,1)",
        "seed=range(3)",
        "experiment=nope",
        "--nope",
        "-x",
    ),
)
GROUPS = ("model", "optim", "schedule", "loop", "metric", "hook", "data")
SLOW = ("torchvision", "text", "profiler", "transformer")
"""Options that take too long, or need files."""


def attempt(trial: Trial) -> None:
    """Run one command with one to three mutations.

    Raises:
        FaultError: it ends with a traceback, another status than 0, 1 or 2, or status 2 and new files.
    """
    for module in PRELOAD:
        importlib.import_module(module)
    drawn = [mutation(trial.random) for _ in range(trial.random.choice((1, 1, 2, 3)))]
    trial.tell(*map(repr, drawn))

    def main() -> None:
        sys.argv = [str(ROOT / "train.py"), *SMALL, *trial.also, *drawn]
        app.main(ROOT / "conf")

    ended = child.run(main, trial.folder)
    check(ended, trial.folder)


def check(ended: child.Ended, folder: Path, known: frozenset[str] = frozenset({"output.txt"})) -> None:
    """Check how a command ended, and what it left.

    Raises:
        FaultError: it is not what is promised.
    """
    if ended.status not in (0, 1, 2):
        raise FaultError(f"it ended with status {ended.status}:\n{ended.tail()}")
    if "Traceback (most recent call last)" in ended.output:
        raise FaultError(f"it ended with status {ended.status} and a traceback:\n{ended.tail()}")
    left = sorted({path.name for path in folder.iterdir()} - known)
    if ended.status == 2 and left:
        raise FaultError(f"it ended with status 2 and left {', '.join(left)}:\n{ended.tail()}")


def mutation(random: Random) -> str:
    """Return an override that is wrong, or may be."""
    keys = _keys()
    key = random.choice(keys)
    match random.choice(("value", "value", "value", "value", "name", "option", "removed", "added", "target", "broken")):
        case "value":
            return f"{key}={random.choice(VALUES)}"
        case "name":
            return f"{_misspelt(random, key)}={random.choice(VALUES)}"
        case "option":
            group = random.choice(GROUPS)
            option = random.choice([name for name in _options(group) if name not in SLOW])
            return f"{group}={_misspelt(random, option) if random.random() < 0.5 else option}"
        case "removed":
            return f"~{key}"
        case "added":
            return f"{random.choice(('+', '++'))}{key}{random.choice(('', '.new', '.0'))}={random.choice(VALUES)}"
        case "target":
            group = random.choice(("model", "optim", "data", "loop", "hook.ema", "metric.loss", "schedule"))
            return f"{random.choice(('', '++'))}{group}._target_={random.choice(TARGETS)}"
    return random.choice(BROKEN)


def _misspelt(random: Random, name: str) -> str:
    at = random.randrange(len(name))
    change = random.choice(("drop", "double", "swap", "other"))
    if change == "drop":
        return name[:at] + name[at + 1 :]
    if change == "double":
        return name[:at] + name[at] + name[at:]
    if change == "swap":
        return name[:at] + name[at : at + 2][::-1] + name[at + 2 :]
    return name[:at] + random.choice("abcxyz_.") + name[at + 1 :]


@cache
def _keys() -> list[str]:
    """Return the keys of the config of the small run."""
    with initialize_config_dir(str(ROOT / "conf"), **VERSION_BASE):
        config = compose("train", [each for each in SMALL if not each.startswith("hydra")])
    found: list[str] = []

    def walk(value: Any, key: str) -> None:
        found.extend([key] if key else [])
        if isinstance(value, dict):
            for name, entry in value.items():
                walk(entry, f"{key}.{name}" if key else str(name))

    walk(OmegaConf.to_container(config, resolve=False), "")
    return [key for key in found if key != "work_dir" and not key.startswith(("strategy", "tracker"))]


@cache
def _options(group: str) -> list[str]:
    return sorted(file.stem for file in (ROOT / "conf" / group).glob("*.yaml"))


PART = Part(
    "overrides",
    "a command with mutated overrides has exit status 0, 1 or 2 and no traceback, and writes no file if the status is "
    "2",
    usual=100,
    attempt=attempt,
)
