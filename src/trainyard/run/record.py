"""Record of a run besides its numbers: its config, the state of its code, its model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml  # type: ignore[import-untyped,unused-ignore]
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from torch import Tensor, nn

from trainyard import rng_state
from trainyard.batch import split_target
from trainyard.files import writing
from trainyard.models import call
from trainyard.redaction import redacted
from trainyard.runner import Runner, checkpoint, foreign_files
from trainyard.runner.training_check import writes_checkpoints
from trainyard.track import RunInfo, facts
from trainyard.track.sweep_position import SweepPosition

CONFIG = "config.yaml"
EXAMPLE = "example.npy"
BEST = Path("checkpoints", "best.pt")
LOADER = f"{__name__}:load_model"
PREDICT = f"{__name__}:predict"

_WORK_DIR = "${hydra:runtime.output_dir}"  # so that a training from this config gets a directory of its own
NOT_PARAMS = ("name", "work_dir", "resume", "tracker")
"""Settings of where a run is kept and how it is named and continued, not of what it does."""


def describe(values: Mapping[str, Any], facts: Mapping[str, str], position: SweepPosition | None = None) -> RunInfo:
    """Return the record of a run: its settings but `NOT_PARAMS` as params, and the option chosen of each group.

    Args:
        values: the resolved config of the job that Hydra's config describes.
        facts: the facts of the machine and the code (`trainyard.track.facts`).
        position: the job's position in its sweep; None for a run by itself.
    """
    job = HydraConfig.get()
    values = redacted(values)
    overrides: Any = OmegaConf.to_container(job.overrides.task, resolve=False)
    params = dict(_flat({key: value for key, value in values.items() if key not in NOT_PARAMS}))
    if position is not None:  # a sweep's job is named by its own overrides; a chosen option implies its values
        varying = [key for key in position.varying if key not in job.runtime.choices]
        params = {key: value for key, value in params.items() if _is_below(key, varying)}
    choices = {
        str(group): str(choice)
        for group, choice in job.runtime.choices.items()
        if choice is not None and not str(group).startswith("hydra/")
    }
    # A part that the config describes in place has no group.
    own = [*(choices[group] for group in ("model", "data") if group in choices), Path(values["work_dir"]).name]
    return RunInfo(
        name=values["name"] or (position.name if position else os.environ.get("MLFLOW_RUN_NAME") or " ".join(own)),
        parent=position.parent if position else None,
        params={group: choice for group, choice in choices.items() if group not in NOT_PARAMS} | params,
        tags={"overrides": " ".join(overrides)},
        facts=dict(facts),
        config=CONFIG,
    )


def _is_below(key: str, keys: Iterable[str]) -> bool:
    return any(f"{key}.".startswith(f"{other}.") for other in keys)


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield flat params: `{"optim": {"lr": 0.1}}` gives `("optim.lr", "0.1")`; lists stay whole."""
    if isinstance(value, Mapping) and value:
        for name, entry in value.items():
            yield from _flat(entry, f"{key}.{name}" if key else str(name))
    else:
        yield key, str(value)


def write_files(runner: Runner, configs: Sequence[Mapping[str, Any]]) -> None:
    """Write into each member's directory what `load_model` and a later reader need: config and model input.

    Args:
        runner: the prepared Runner.
        configs: the members' configs, resolved.
    """
    example = _example(runner)
    model = runner.model_config
    sections: dict[tuple[str, str], str] = {}
    for member, values in zip(runner.members, configs, strict=True):
        shown = redacted(dict(values) | ({"model": model} if "model" in values else {}) | {"work_dir": _WORK_DIR})
        text = [_section(key, value, sections) for key, value in shown.items()]
        with writing(member.directory / CONFIG):
            (member.directory / CONFIG).write_text("".join(text))
        if example is not None:
            with writing(member.directory / EXAMPLE):
                np.save(member.directory / EXAMPLE, example)
        if values["mode"] == "train" and runner.tracker.log_model and writes_checkpoints(runner):
            # Named early, so that the shipper has imported torch when the run ends; it reads the file only then.
            member.journal.model(BEST, LOADER, PREDICT)


def _section(key: str, value: Any, known: dict[tuple[str, str], str]) -> str:
    """Return a top-level entry as YAML; an entry that many members share is written once."""
    found = known.get((key, repr(value)))
    if found is None:
        found = known[key, repr(value)] = OmegaConf.to_yaml(OmegaConf.create({key: value}))
    return found


def _example(runner: Runner) -> np.ndarray[Any, Any] | None:
    """Return one input of the model; None if it takes anything but one tensor."""
    split = next((split for split in ("val", "test", "train") if runner.has_split(split)), None)
    if split is None:
        return None
    loader = runner.loader(split)
    with rng_state.seeded(runner.seed):  # reading may draw random numbers, which a resumed run must not draw again
        # The stream that will be trained on is not opened twice.
        batch = runner.reader.look_ahead() if split == "train" else next(iter(loader.batches()), None)
    positional = batch if isinstance(batch, list | tuple) else (batch,)
    inputs, named, _ = split_target(*((), batch) if isinstance(batch, Mapping) else (positional, {}))
    if named or len(inputs) != 1 or not isinstance(inputs[0], Tensor):
        return None
    own = inputs[0][0] if getattr(loader, "stacked", False) else inputs[0]
    return own[:1].cpu().numpy()


def name_artifacts(runner: Runner) -> None:
    """Name in the journal the files that belong to the run, and the checkpoint that is its model."""
    for member in runner.all_members:
        if member.paused:
            continue
        folder = member.directory
        hydra_folder = HydraConfig.get().output_subdir
        files = [CONFIG, *facts.FILES.values(), f"{HydraConfig.get().job.name}.log"]
        files += [hydra_folder] if hydra_folder else []
        for name in files:
            if (folder / name).exists():
                member.journal.artifact(name)
        saved = {"best": folder / BEST}
        history = checkpoint.read_last(member.checkpoints)
        if history:
            saved["last"] = member.checkpoints / history[-1]
        for kind in runner.tracker.log_checkpoints:
            if kind in saved and saved[kind].exists():
                member.journal.artifact(saved[kind], to="checkpoints")
        if runner.tracker.log_model and not saved["best"].exists() and "last" in saved:
            member.journal.model(saved["last"], LOADER, PREDICT)


def load_model(work_dir: Path, file: Path) -> tuple[nn.Module, np.ndarray[Any, Any] | None]:
    """Return a run's model with the weights that a checkpoint was evaluated with, on the CPU, in eval mode.

    Args:
        work_dir: the run's directory.
        file: the checkpoint, or the file of safetensors that `trainyard export` wrote.

    Returns:
        The model, and one input for it (None if none was kept).
    """
    # libyaml, and only the keys needed: OmegaConf's own reading of the file would take longer than all the rest.
    config = yaml.load((work_dir / CONFIG).read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    model = Runner(OmegaConf.create(config["model"]), seed=config["seed"], device="cpu").model
    if file.suffix == foreign_files.SAFE:  # what `trainyard export` wrote
        model.load_state_dict(foreign_files.read(file))
    else:
        state = checkpoint.read(file)
        model.load_state_dict(state.get("eval_model", state["model"]))
    example = work_dir / EXAMPLE
    return model.eval(), np.load(example) if example.exists() else None


def predict(model: nn.Module, inputs: Any) -> Any:
    """Return a model's predictions as they are evaluated: its `data_preprocessor`, then its forward in `predict` mode.

    Args:
        model: in eval mode.
        inputs: a batch without its target, on the model's device.
    """
    preprocess = getattr(model, "preprocess", None)
    return call(model, inputs if preprocess is None else preprocess(inputs), "predict")
