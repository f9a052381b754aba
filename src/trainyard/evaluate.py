"""Metrics of a file of predictions, without the model.

python -m trainyard.evaluate outputs/…/predictions.parquet                          # the metrics of the run
python -m trainyard.evaluate outputs/…/predictions.parquet metric=classification    # or others
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml  # type: ignore[import-untyped,unused-ignore]
from hydra import compose, initialize, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from trainyard.checks import existing_folder, integer
from trainyard.config.build import fill_auto
from trainyard.config.explain import explain_absent
from trainyard.config.hydra_versions import VERSION_BASE
from trainyard.errors import ConfigError, TrainyardError, first_line
from trainyard.hooks.predictions.file import MissingError, Predictions
from trainyard.metrics import configured, results_of
from trainyard.starting import check_current_folder
from trainyard.track import own

Compose = Callable[[Sequence[Override]], DictConfig]
CONFIG = "config.yaml"  # written by a run beside its predictions


def offline(
    file: str | Path, metrics: Mapping[str, Any], *, chunk_size: int | None = None
) -> dict[str, float | NDArray[Any]]:
    """Compute metrics from the predictions of a test, with the same results as in that test.

    The batches are those of the test, so that sums are rounded in the same way: for a test on the CPU, the results are
    bit-identical. On CUDA, they differ by the rounding of its kernels.

    Args:
        file: `predictions.parquet` of a run.
        metrics: metrics by name, as objects or their configs; a value `auto` is replaced by the property of the run's
            data.
        chunk_size: samples at a time; None for the batches of the test.

    Returns:
        The results by `<split>/<name>`: numbers, or arrays if a result is not a single number.

    Raises:
        ConfigError: the config of a metric is invalid, or two metrics return results with the same name.
        TrainyardError: `file` is not a file of predictions, or does not contain what a metric reads.
    """
    if chunk_size is not None:
        integer("chunk_size", chunk_size, at_least=1, other="None for the batches of the test")
    predictions = Predictions.read(file)
    config = fill_auto(metrics, "metric", predictions.facts.get("spec", {}))
    built = configured(config)
    for metric in built.values():
        metric.reset()
    with torch.no_grad():
        for batch, outputs in predictions.batches(chunk_size):
            for name, metric in built.items():
                try:
                    metric.process(batch, outputs)
                except MissingError as error:
                    raise TrainyardError(f"metric.{name} cannot be computed from {file}: {error}") from None
    split = predictions.facts.get("split", "test")
    return {
        f"{split}/{name}": value.item() if value.numel() == 1 else value.numpy()
        for name, value in results_of(built).items()
    }


def metric_config(
    file: Path, overrides: Sequence[str], config_dir: str | None = None, *, trust: bool = False
) -> dict[str, Any]:
    """Compose the group `metric` from overrides.

    Args:
        file: the predictions. If no option is selected, the metrics are those of the run that wrote them.
        overrides: as on the command line, only of `metric`.
        config_dir: config folder with your own `metric` group, in addition to Trainyard's.
        trust: use the metrics of the run even if its directory is not the user's own; its config can run any code.

    Raises:
        ConfigError: an override is invalid or does not belong to `metric`, or no option is selected and none is known.
        TrainyardError: a value is an interpolation of a value outside of `metric`.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise ConfigError("metric", " ".join(overrides), "overrides of metric", hint=first_line(error)) from None
    for override in parsed:
        if override.key_or_group.partition(".")[0] != "metric":
            raise ConfigError("metric", override.input_line, "an override of metric, such as metric=classification")
    compose_with: Compose
    if any(override.key_or_group == "metric" for override in parsed):
        compose_with = partial(_composed, config_dir=config_dir)
    else:
        recorded = file.parent / CONFIG
        if not recorded.exists():
            if not file.exists():
                raise TrainyardError(f"{file} does not exist.")
            hint = f"The directory of {file} contains no {CONFIG} of a run."
            raise ConfigError("metric", None, "an option of the group, such as metric=classification", hint=hint)
        if not (trust or own.is_own_directory(file.parent)):
            hint = (
                f"{file.parent} is not recognized as your own (it may be a copy or a download), and its {CONFIG} can "
                "run any code. Pass --trust if you trust this run."
            )
            raise ConfigError("metric", None, "an option of the group, such as metric=classification", hint=hint)
        metrics = yaml.safe_load(recorded.read_text(encoding="utf-8")).get("metric") or {}
        compose_with = partial(_overridden, metrics)
    try:
        return _plain(compose_with(parsed))
    except InterpolationResolutionError as error:
        raise TrainyardError(
            f"{error.full_key} cannot be resolved, because only the group metric is composed here: "
            f"{first_line(error)}. Set its value with {error.full_key}=…."
        ) from None
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise _explained(error, parsed, compose_with) from None


def _explained(error: Exception, overrides: Sequence[Override], compose_with: Compose) -> TrainyardError:
    """Return the error about the first override of a key that does not exist, or else about all overrides."""
    given = " ".join(str(override.input_line) for override in overrides)
    other = ConfigError("metric", given, "overrides of existing keys", hint=first_line(error))
    added = [each for each in overrides if each.key_or_group == "metric" or each.is_add() or each.is_force_add()]
    try:
        config = compose_with(added)
    except (HydraException, OmegaConfBaseException, ValueError):
        return other
    others = (each for each in overrides if each not in added)
    told = (explain_absent(each.key_or_group, config, removed=each.is_delete()) for each in others)
    return next((each for each in told if each is not None), other)


def _overridden(metrics: Mapping[str, Any], overrides: Sequence[Override]) -> DictConfig:
    """Apply overrides to the metrics of a run."""
    config = OmegaConf.create({"metric": metrics})
    OmegaConf.set_struct(config, True)
    ConfigLoaderImpl._apply_overrides_to_config(list(overrides), config)
    return config


def _composed(overrides: Sequence[Override], config_dir: str | None) -> DictConfig:
    """Compose an option of the group `metric` without a primary config."""
    where = None if config_dir is None else str(existing_folder("--config-dir", config_dir).resolve())
    with initialize(None, **VERSION_BASE) if where is None else initialize_config_dir(where, **VERSION_BASE):
        options = GlobalHydra.instance().config_loader().get_group_options("metric")
        lines = []
        for override in overrides:
            chooses = override.key_or_group == "metric"
            if chooses and override.value() not in options:
                raise ConfigError("metric", override.value(), f"one of {', '.join(options)}", options=options)
            lines.append(f"+{override.input_line}" if chooses else str(override.input_line))
        return compose(overrides=lines)


def _plain(config: DictConfig) -> dict[str, Any]:
    plain: Any = OmegaConf.to_container(config, resolve=True)
    metric: dict[str, Any] = plain.get("metric") or {}
    return metric


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m trainyard.evaluate", description="Compute metrics from the predictions saved by a test."
    )
    parser.add_argument("file", type=Path, help="predictions.parquet of a run")
    parser.add_argument(
        "overrides", nargs="*", help="metric=…, metric.accuracy.topk=… (default: the metrics of the run)"
    )
    parser.add_argument("--config-dir", "-cd", help="config folder with your own `metric` group")
    parser.add_argument("--chunk-size", type=int, help="samples per batch (default: the batches of the test)")
    parser.add_argument(
        "--trust",
        action="store_true",
        help="trust the config of a run that is not recognized as your own; it can run any code",
    )
    given = parser.parse_intermixed_args(arguments)
    try:
        check_current_folder()
        sys.path.insert(0, str(Path.cwd()))  # for classes in the working folder that a config names
        if given.chunk_size is not None:
            integer("--chunk-size", given.chunk_size, at_least=1)
        config = metric_config(given.file, given.overrides, given.config_dir, trust=given.trust)
        results = offline(given.file, config, chunk_size=given.chunk_size)
    except TrainyardError as error:
        print(error, file=sys.stderr)
        return error.status
    for name, value in results.items():
        print(name, value if isinstance(value, float | int) else f"\n{value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
