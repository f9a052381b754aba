"""Record of a run in addition to its numbers: its config, the state of its code, its model."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import yaml  # type: ignore[import-untyped,unused-ignore]
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from torch import Tensor, nn

from trainyard import rng_state
from trainyard.batch import split_target
from trainyard.config.yaml_text import yaml_text
from trainyard.data.digest import digests
from trainyard.files import writing
from trainyard.models import call
from trainyard.redaction import redacted
from trainyard.run import params
from trainyard.runner import Member, Runner, checkpoint, foreign_files
from trainyard.runner.training_check import writes_checkpoints
from trainyard.track import RunInfo, Tracker, facts
from trainyard.track.sweep_position import SweepPosition

log = logging.getLogger(__name__)

CONFIG = "config.yaml"
EXAMPLE = "example.npy"
MODEL = "model"
"""Name of a run's model in MLflow: its best checkpoint, or the last one if no best is kept."""
BEST = Path("checkpoints", "best.pt")
LOADER = f"{__name__}:load_model"
PREDICT = f"{__name__}:predict"

_MOST_SECTIONS = 512
_sections: dict[tuple[str, str], str] = {}  # parts of configs as YAML, by key and value
_WORK_DIR = "${hydra:runtime.output_dir}"  # so that a training from this config gets a directory of its own
NOT_PARAMS = ("name", "work_dir", "resume", "tracker")
"""Settings for the place, name and continuation of a run, which do not affect its results."""
DEFAULTS = {name: parameter.default for name, parameter in inspect.signature(Runner.__init__).parameters.items()} | {
    "mode": "train",
    "quick": False,
}
"""Defaults of the top-level settings."""


def describe(values: Mapping[str, Any], facts: Mapping[str, str], position: SweepPosition | None = None) -> RunInfo:
    """Return the record of a run, with the selected option of each group and the selected settings as params.

    Args:
        values: the resolved config of the job that Hydra's config describes.
        facts: the facts of the machine and the code (`trainyard.track.facts`).
        position: the job's position in its sweep; None for a single run.
    """
    job = HydraConfig.get()
    values = redacted(values)
    overrides: Any = OmegaConf.to_container(job.overrides.task, resolve=False)
    what = {key: value for key, value in values.items() if key not in NOT_PARAMS}
    settings = dict(params.flat(what))
    given = {key.lstrip("+~").partition("@")[0]: text for key, _, text in (each.partition("=") for each in overrides)}
    # Hydra does not record the options of a group that has several, such as hook=[ema,nan_guard].
    several = {
        key: text for key, text in given.items() if text.startswith("[") and isinstance(values.get(key), Mapping)
    }
    selected = dict(job.runtime.choices) | several
    if position is not None:  # a sweep's job is named by its own overrides; a chosen option implies its values
        varying = [key for key in position.varying if key not in selected]
        chosen = {key: value for key, value in settings.items() if params.below(key, varying)}
    else:
        chosen = params.chosen(what, [key for key in given if key not in selected], DEFAULTS)
    choices = {
        str(group): str(choice)
        for group, choice in selected.items()
        if choice is not None and not str(group).startswith("hydra/")
    }
    # A part that the config describes in place has no group.
    own = [*(choices[group] for group in ("model", "data") if group in choices), Path(values["work_dir"]).name]
    return RunInfo(
        name=values["name"] or (position.name if position else os.environ.get("MLFLOW_RUN_NAME") or " ".join(own)),
        parent=position.parent if position else None,
        params={group: choice for group, choice in choices.items() if group not in NOT_PARAMS} | chosen,
        settings={} if position is not None else choices | settings,
        tags={"overrides": " ".join(overrides)} | ({} if position is None else _place(position)),
        experiment=position.experiment if position else None,
        facts=dict(facts),
        config=CONFIG,
    )


def _place(position: SweepPosition) -> dict[str, str]:
    """Return the tags that distinguish a job from the others of its sweep, and its stack and lane."""
    places = {"varies": position.name, "stack": position.stack, "lane": position.lane}
    return {key: str(value) for key, value in places.items() if value is not None}


def write_files(
    runner: Runner,
    configs: Sequence[Mapping[str, Any]],
    members: Sequence[Member],
    example: np.ndarray[Any, Any] | None,
) -> None:
    """Write the config and the model input, for `load_model` and later readers, into each member's directory.

    Args:
        runner: the prepared Runner.
        configs: the resolved configs of the members.
        members: the members.
        example: the result of `example`.
    """
    model = runner.model_config
    for member, values in zip(members, configs, strict=True):
        shown = redacted(dict(values) | ({"model": model} if "model" in values else {}) | {"work_dir": _WORK_DIR})
        text = [_section(key, value) for key, value in shown.items()]
        with writing(member.directory / CONFIG):
            (member.directory / CONFIG).write_text("".join(text))
        if example is not None:
            with writing(member.directory / EXAMPLE):
                np.save(member.directory / EXAMPLE, example)
        if values["mode"] == "train" and runner.tracker.log_model and writes_checkpoints(runner):
            # Named early, so that the shipper has imported torch when the run ends; it reads the file only then.
            member.journal.model(BEST, LOADER, PREDICT, form=runner.tracker.model_format)


def _section(key: str, value: Any) -> str:
    """Return a top-level entry as YAML; an entry that several members share, now or later, is created once."""
    known, name = _sections, (key, repr(value))
    found = known.pop(name, None)
    if found is None:
        found = yaml_text({key: value})
        if len(known) >= _MOST_SECTIONS:
            del known[next(iter(known))]
    known[name] = found  # as the one that was used last
    return found


def example(runner: Runner) -> np.ndarray[Any, Any] | None:
    """Return one input of the model; None if the input is not a single tensor."""
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


def tell_tested(runner: Runner) -> None:
    """Record the checkpoint to which the numbers of the test belong."""
    for member in runner.members:
        if member.evaluated is not None and member.best is not None:
            best = member.best
            member.journal.tags({"test.checkpoint": f"{BEST.name}, epoch {best.epoch}, step {best.iter}"})
            member.evaluated = None


def begin_inputs(runner: Runner, config: Mapping[str, Any]) -> Callable[[], list[dict[str, Any]]]:
    """Start to compute the digests of the data in a thread; return a function that waits for them.

    It returns the data sets for `Journal.inputs`.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="digests")
    found = pool.submit(digests, runner.data)
    pool.shutdown(wait=False)
    node = redacted(config.get("data"))
    name = runner.members[0].info.params.get("data") or type(runner.data).__name__.lower()

    def result() -> list[dict[str, Any]]:
        try:
            sets = found.result()
        except Exception as error:  # a data set of the user's that looks like one of ours
            log.warning(
                "No data sets are recorded for this run, because the digests of the data could not be computed: %s: %s",
                type(error).__name__,
                error,
            )
            return []
        source = dict(params.flat(node)) if isinstance(node, Mapping) else {"class": type(runner.data).__name__}
        source = {key: value for key, value in source.items() if value != "None"}
        return [
            {
                "name": f"{name}/{each.name}",
                "digest": each.digest,
                "context": each.name,
                "source": source,
                "covers": each.covers,
                "rows": each.rows,
                "shapes": each.shapes,
            }
            for each in sets
        ]

    return result


def name_artifacts(runner: Runner, members: Sequence[Member], inputs: Sequence[Mapping[str, Any]] = ()) -> None:
    """Record in the journal the files of the run, its data, and the checkpoints that are its models.

    Args:
        runner: the Runner.
        members: members whose runs have ended.
        inputs: the data sets from `begin_inputs`.
    """
    for member in members:
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
        if inputs:
            member.journal.inputs(inputs)
        if runner.tracker.log_model and not runner.interrupted:  # only a finished run has models
            _name_models(member, runner.tracker, history)


def _name_models(member: Member, tracker: Tracker, history: Sequence[str]) -> None:
    """Record the checkpoints that are models in MLflow: the best one, otherwise the last; or all that are kept, if
    requested."""
    steps: dict[str, tuple[Path, int]] = {}
    best = member.checkpoints / BEST.name
    if best.exists() and member.best is not None:
        steps[MODEL] = best, member.best.iter
    elif history:
        steps[MODEL] = member.checkpoints / history[-1], member.iter
    if tracker.log_model == "kept":
        for name in history:
            file = member.checkpoints / name
            steps[file.stem] = file, checkpoint.read(file)["iter"]
    for name, (file, step) in steps.items():
        member.journal.model(file, LOADER, PREDICT, name=name, step=step, form=tracker.model_format)
    if MODEL not in steps:
        member.journal.withdraw_model()  # a training that saved no checkpoint, such as that of hook.lr_finder
    if steps and tracker.register is not None and member.info.parent is None:  # a sweep registers its best job's
        member.journal.register(*tracker.register)


def load_model(work_dir: Path, file: Path) -> tuple[nn.Module, np.ndarray[Any, Any] | None]:
    """Return a run's model with the weights that a checkpoint was evaluated with, on the CPU, in eval mode.

    Args:
        work_dir: the run's directory.
        file: the checkpoint, or the file of safetensors that `trainyard export` wrote.

    Returns:
        The model, and one input for it (None if none was saved).

    Raises:
        ConfigError: the checkpoint is absent or damaged.
    """
    # libyaml, and only the keys needed: OmegaConf's own reading of the file would take longer than all the rest.
    config = yaml.load((work_dir / CONFIG).read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    model = Runner(OmegaConf.create(config["model"]), seed=config["seed"], device="cpu").model
    if file.suffix == foreign_files.SAFE:  # what `trainyard export` wrote
        model.load_state_dict(checkpoint.given("run", file, foreign_files.read)[1])
    else:
        _, state = checkpoint.given("run", file, checkpoint.read)
        model.load_state_dict(state.get("eval_model", state["model"]))
    example = work_dir / EXAMPLE
    return model.eval(), np.load(example) if example.exists() else None


def predict(model: nn.Module, inputs: Any) -> Any:
    """Return a model's predictions as in an evaluation: `data_preprocessor`, then its forward in `predict` mode.

    Args:
        model: a model in eval mode.
        inputs: a batch without its target, on the model's device.
    """
    preprocess = getattr(model, "preprocess", None)
    return call(model, inputs if preprocess is None else preprocess(inputs), "predict")
