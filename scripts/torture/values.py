"""Wrong values for the keys of the options in conf/: each is accepted, or a message names the key and what is."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

import child
import expectations
import numpy as np
from hydra import compose, initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from PIL import Image
from runs import PRELOAD, ROOT
from trials import FaultError, Part, Trial

import trainyard.command
import trainyard.run.train
import trainyard.sweep.sweep
from trainyard.config.explain import explain
from trainyard.config.hydra_versions import VERSION_BASE, any_target
from trainyard.config.places import ConfigPlaces
from trainyard.console import tell
from trainyard.errors import TrainyardError
from trainyard.run.quick import EndEarly

CONF = ROOT / "conf"
VALUES = ("null", "''", "abc", "true", "0", "-1", "1.5", "nan", "inf", str(10**30), "[1,a]", "{a: 1}")
SMALL = {
    "": ("data=rings", "data.num_samples=60", "data.batch_size=16", "model=mlp", "model.hidden=[4]"),
    "images": ("data=digits", "data.batch_size=512", "model=cnn", "model.channels=[2]"),
    "text": (
        *("data=text", "data.path=text.txt", "data.context_length=8", "model=transformer"),
        *("model.dim=8", "model.heads=2", "model.layers=1"),
    ),
}
"""Overrides of small runs."""
COMMON = ("loop.max_epochs=1", "tracker=none", "device=cpu")
CHOSEN = {
    "data/arrays": ("data.path=table.csv", "data.target=y", "data.batch_size=16"),
    "data/digits": SMALL["images"],
    "data/hf": ("data.path=set", "data.tokenizer={_target_: trainyard.data.BytePairs}"),
    "data/image_folder": ("data.path=images", "model=cnn", "model.channels=[2]"),
    "data/loaders": (
        "data.train={_target_: wrong_values.loader}",
        "data.val={_target_: wrong_values.loader}",
        "data.spec={in_features: 2, num_classes: 2}",
        "model=mlp",
    ),
    "data/stream": ("data.shards=table.csv", "data.val_shards=table.csv", "data.target=y", "data.num_classes=2"),
    "data/text": SMALL["text"],
    "data/tokens": (*SMALL["text"], "data=tokens", "data.path=tokens.npy"),
    "model/cnn": SMALL["images"],
    "model/resnet": ("data=digits", "data.batch_size=512", "model.depth=8", "model.width=2"),
    "model/timm": SMALL["images"][:2],
    "model/torchvision": SMALL["images"][:2],
    "model/transformer": SMALL["text"],
    "model/data_preprocessor/augment": ("model.data_preprocessor.transforms=[{_target_: torch.nn.Identity}]",),
    "hook/precise_bn": ("model.batch_norm=true",),
    "hook/test_time_augmentation": SMALL["images"],
    "hook/unfreeze": ("freeze=['*.bias']", "hook.unfreeze.at={1: '*.bias'}"),
    "loop/iter": ("~loop.max_epochs", "loop.max_iters=4", "loop.val_interval=2"),
    "metric/language": SMALL["text"],
    "metric/regression": ("data=arrays", "data.path=table.csv", "data.target=b", "data.batch_size=16"),
    "hydra/sweeper/search": ("hydra.sweeper.n_trials=2",),
    "hydra/sweeper/pruner/threshold": ("hydra.sweeper.pruner.upper=10",),
}
"""Overrides that an option needs, by option."""
SWEPT = {"search": "optim.lr=interval(1e-3,1e-1)", "pbt": "optim.lr=interval(1e-3,1e-1)", "grid": "seed=0,1"}
"""Overrides of a small sweep, by sweeper."""
LEFT_OUT = (
    *("hydra/help", "hydra/job_logging", "experiment"),
    *("hook/detection_log", "metric/logged", "model/lightning", "optim/model"),
)
"""Groups that have no settings, and options that need a model of the user."""
GLOBAL = ("data/text", "data/tokens", "metric", "experiment")
"""Groups and options with the header `@package _global_`."""
NOT_INSTALLED = "(a package is not installed)"
OWN = """
import torch
from torch.utils.data import DataLoader, TensorDataset

def loader():
    return DataLoader(TensorDataset(torch.zeros(20, 2), torch.arange(20) % 2), batch_size=10)
"""


@dataclass(frozen=True)
class Place:
    """A key that an option sets.

    Attributes:
        option: the file of the option, without its ending: `optim/adam`; `train` is the primary config.
        key: the key in the composed config.
    """

    option: str
    key: str

    @property
    def sweeps(self) -> bool:
        return self.option.startswith("hydra/")


def attempt(trial: Trial) -> None:
    """Give one key of one option each of the wrong values.

    Raises:
        FaultError: with a value, the command ends with a traceback, with another status than 0, 1 or 2, or with status
            2 and a message that does not name the key; or a message contradicts what the command accepts.
    """
    order = places()
    Random(f"values {trial.seed}").shuffle(order)
    place = order[trial.case % len(order)]
    trial.tell(place.option, place.key)
    _write_files(trial.folder)
    for module in PRELOAD:
        importlib.import_module(module)
    compose_once = _composed_sweep if place.sweeps else _composed
    compose_once(place.option, tuple(trial.also))
    faults, ends = [], {}
    for value in ("", *VALUES):
        ended = _end(place, value, trial)
        fault = _fault(place, value, ended, trial)
        if fault is not None:
            faults.append(fault)
        elif value:
            ends[value] = ended
        if not value and (fault is not None or NOT_INSTALLED in trial.told):
            break
    faults += expectations.contradictions(place.key, {value: (end.status, end.output) for value, end in ends.items()})
    if faults:
        raise FaultError("\n".join(faults))


def _end(place: Place, value: str, trial: Trial) -> child.Ended:
    """Run a command with a value of the key; if it is empty, without it."""
    shutil.rmtree(trial.folder / "run", ignore_errors=True)
    line = f"{place.key}={value}" if value else ""
    return child.run(partial(_sweep if place.sweeps else _train, place, line, trial), trial.folder)


def _fault(place: Place, value: str, ended: child.Ended, trial: Trial) -> str | None:
    """Return what is wrong with the end of a command; None if nothing is.

    Args:
        value: the value of the key; empty for the command without it, which has to succeed.
    """
    line = f"{place.key}={value}"
    if not value and ended.status != 0:
        if "pip install" in ended.output:
            trial.tell(NOT_INSTALLED)
            return None
        return f"the command without a wrong value ended with status {ended.status}:\n{ended.tail()}"
    if ended.status not in (0, 1, 2):
        return f"{line} ended with status {ended.status}:\n{ended.tail()}"
    if "Traceback (most recent call last)" in ended.output:
        return f"{line} ended with status {ended.status} and a traceback:\n{ended.tail()}"
    if value == "null":  # a part that is missing can be an error of another part, which needs it
        return None
    if ended.status == 2 and "pip install" not in ended.output and not _names(ended.output, place):
        return f"{line}: the message does not name the key:\n{ended.tail()}"
    return None


def _names(output: str, place: Place) -> bool:
    """Return whether a message names a key; or its node, for `_target_` and for nodes below a group; or the group, for
    an option that cannot be used here."""
    node, _, name = place.key.rpartition(".")
    of_node = (name.startswith("_") or "." in node) and node in output
    return place.key in output or of_node or (place.sweeps and f"{place.option.rpartition('/')[0]}: " in output)


# -- a command ---------------------------------------------------------------------------------------------------------


def _train(place: Place, line: str, trial: Trial) -> None:
    """Compose, check, build and train as the command does, up to the first validation."""
    sys.path.insert(0, str(trial.folder))
    config = _composed(place.option, tuple(trial.also))
    folders = ConfigPlaces(str(CONF), "train")
    with open_dict(config), read_write(config):
        config.hydra.runtime.output_dir = str(trial.folder / "run")
    (trial.folder / "run").mkdir()
    module: Any = trainyard.run.train
    prepared, last = module._prepared, EndEarly(resumes=False)
    module._prepared = lambda *given: prepared(*given[:5], *(given[5:] or [last]))
    with _told(line, folders), any_target():
        overrides = OverridesParser.create().parse_overrides([line] if line else [])
        ConfigLoaderImpl._apply_overrides_to_config(overrides, config)
        HydraConfig.instance().set_config(config)
        own = config.copy()
        with read_write(own), open_dict(own):
            del own["hydra"]
        trainyard.run.train.train(own)


def _sweep(place: Place, line: str, trial: Trial) -> None:
    """Check the settings of a sweep as the command does, and ask its sweeper for jobs."""
    config, sweeps = _composed_sweep(place.option, tuple(trial.also))
    folders = ConfigPlaces(str(CONF), "train")
    launched: Any = trainyard.sweep.sweep.Sweep
    launched.run = _ask
    with _told(line, folders), any_target():
        overrides = OverridesParser.create().parse_overrides([line] if line else [])
        ConfigLoaderImpl._apply_overrides_to_config(overrides, config)
        HydraConfig.instance().set_config(config)
        context = HydraContext(config_loader=sweeps.config_loader, callbacks=Callbacks())
        sweeper = Plugins.instance().instantiate_sweeper(
            config=config, hydra_context=context, task_function=trainyard.command.Application()
        )
        arguments: Any = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
        sweeper.sweep(arguments=arguments)


def _ask(sweep: Any, proposer: Any, **_: Any) -> None:
    proposer.ask(2)


@contextmanager
def _told(line: str, folders: ConfigPlaces) -> Iterator[None]:
    """End the process as the command does after an error."""
    try:
        yield
    except TrainyardError as error:
        sys.exit(tell(error))
    except Exception as error:
        known = None if trainyard.command._is_from_train(error) else explain(error, [line], folders)
        if known is None:
            raise
        sys.exit(tell(known))


@cache
def _composed_sweep(option: str, also: tuple[str, ...]) -> tuple[DictConfig, Hydra]:
    group, _, name = option.rpartition("/")
    sampled = group == "hydra/sweeper/sampler"
    sweeper = name if group == "hydra/sweeper" else "search" if sampled else "grid"
    needed = ("hydra/sweeper=search", *CHOSEN["hydra/sweeper/search"]) if sweeper == "search" else ()
    further = CHOSEN.get(option, ()) if group == "hydra/sweeper/pruner" else ()
    own = dict.fromkeys((*needed, f"{group}={name}", *further, "hydra.sweep.dir=sweep"))
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        config = hydra.compose_config(
            "train",
            [*SMALL[""], *COMMON[1:], SWEPT[sweeper], *also, *own],
            RunMode.MULTIRUN,
            with_log_configuration=False,
        )
        return config, hydra


@cache
def _composed(option: str, also: tuple[str, ...]) -> DictConfig:
    group, _, name = option.rpartition("/")
    added = "+" if group == "model/data_preprocessor" else ""
    needed = CHOSEN.get(option, ())
    base = SMALL["images"] if added else SMALL[""]
    selects = [f"{added}{group}={name}"] if group else []
    # The last value of a key counts; an option is selected once.
    overrides: dict[str, str] = {}
    for each in (*base, *COMMON, *selects, *needed, *also):
        if each.startswith("~"):
            overrides.pop(each[1:], None)
        else:
            overrides[each.partition("=")[0]] = each
    kept = [each for each in overrides.values() if _fits(each, overrides)]
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        return compose("train", kept, return_hydra_config=True)


def _fits(override: str, overrides: dict[str, str]) -> bool:
    """Return whether the chosen option of the group has the key of an override."""
    group, dot, key = override.partition("=")[0].partition(".")
    if not dot or group not in ("data", "model"):
        return True
    option = overrides.get(group, "").partition("=")[2]
    loaded: Any = OmegaConf.load(CONF / group / f"{option}.yaml")
    return "." in key or key in list(loaded.get(group, loaded))


def _write_files(folder: Path) -> None:
    """Write the data sets that the options read."""
    numbers = np.random.default_rng(0)
    rows = [f"{a:.3f},{b:.3f},{index % 2}" for index, (a, b) in enumerate(numbers.normal(size=(60, 2)))]
    (folder / "table.csv").write_text("\n".join(["a,b,y", *rows]) + "\n")
    (folder / "text.txt").write_text("a short text of few characters, " * 20)
    (folder / "wrong_values.py").write_text(OWN)
    np.save(folder / "tokens.npy", numbers.integers(0, 9, 400).astype(np.uint16))
    for name in ("cat", "dog"):
        (folder / "images" / name).mkdir(parents=True)
        for index in range(10):
            image = Image.fromarray(numbers.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            image.save(folder / "images" / name / f"{index}.png")


# -- keys --------------------------------------------------------------------------------------------------------------


def places() -> list[Place]:
    """Return every key of every option."""
    found = [Place("train", key) for key in _keys(CONF / "train.yaml", "") if not key.startswith(("hydra", "hook"))]
    for file in sorted(CONF.rglob("*.yaml")):
        option = file.relative_to(CONF).with_suffix("").as_posix()
        group = option.rpartition("/")[0]
        if group and not option.startswith(LEFT_OUT):
            package = "" if option.startswith(GLOBAL) else group.replace("/", ".")
            found += [Place(option, key) for key in _keys(file, package)]
    return found


def _keys(file: Path, package: str) -> Iterator[str]:
    content: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)

    def walk(value: Any, key: str) -> Iterator[str]:
        if isinstance(value, dict):
            for name, entry in value.items():
                whole = f"{key}.{name}" if key else str(name)
                yield whole
                yield from walk(entry, whole)

    yield from walk({name: entry for name, entry in content.items() if name != "defaults"}, package)


PART = Part(
    "values",
    "with a wrong value, a command has exit status 0, 1 or 2 and no traceback, and if the status is 2, its message "
    "names the key and what is accepted",
    usual=6,
    attempt=attempt,
    complete=lambda: len(places()),
)
