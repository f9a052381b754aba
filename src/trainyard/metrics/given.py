"""Conversion of metrics of other libraries."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from trainyard.config.build import build_all, is_node, names_argument
from trainyard.config.schema import PATHS
from trainyard.errors import ConfigError
from trainyard.metrics.function import FunctionMetric
from trainyard.metrics.metric import Metric
from trainyard.metrics.mmengine import MMEngineMetric
from trainyard.metrics.selection import path_of
from trainyard.metrics.torchmetrics import TorchMetric


def configured(config: Mapping[str, Any]) -> dict[str, Metric]:
    """Build metrics from their configs, by name.

    Args:
        config: a mapping from names to metrics or their configs, with `output` and `target` to select the input.
            Entries that are None are omitted.

    Raises:
        ConfigError: an entry cannot be built, or does not support the selection of output and target.
    """
    nodes, chosen = {}, {}
    for name, value in config.items():
        nodes[name], chosen[name] = without_paths(value)
    built = {}
    for name, given in build_all(nodes, "metric").items():
        try:
            metric = as_metric(given)
        except ConfigError as error:
            error.key = f"metric.{name}"
            raise
        metric.name = str(name)
        for key, path in chosen[name].items():
            if not metric.selects or (key == "target" and isinstance(metric, MMEngineMetric)):
                accepted = f"null, because the {key} of this metric cannot be selected"
                raise ConfigError(f"metric.{name}.{key}", path, accepted)
            setattr(metric, key, path_of(f"metric.{name}.{key}", path))
        built[name] = metric
    return built


def without_paths(value: Any) -> tuple[Any, dict[str, Any]]:
    """Return the config of a metric without `output` and `target`, and these two; arguments of the class are kept."""
    if not is_node(value):
        return value, {}
    paths = {key: value[key] for key in PATHS if value.get(key) is not None and not names_argument(value, key)}
    return {key: entry for key, entry in value.items() if key not in PATHS or names_argument(value, key)}, paths


def as_metric(given: Any) -> Metric:
    """Return a metric unchanged, or an adapter for a torchmetrics metric, an MMEngine metric, or a function.

    Raises:
        ConfigError: the value is none of these.
    """
    if isinstance(given, Metric):
        return given
    if not isinstance(given, type):
        if _has(given, "update", "compute", "reset", "to"):
            return TorchMetric(given)
        if _has(given, "process", "compute_metrics"):
            return MMEngineMetric(given)
        if inspect.isfunction(given) or isinstance(given, functools.partial):
            return FunctionMetric(given)
    accepted = (
        "a trainyard.metrics.Metric, an object with update, compute, reset and to (torchmetrics) or with process and "
        "compute_metrics (MMEngine), a function of targets and predictions (_partial_: true), the `_target_` of one of "
        "these, or null"
    )
    raise ConfigError("metric", given, accepted)


def _has(given: Any, *methods: str) -> bool:
    return all(callable(getattr(given, name, None)) for name in methods)
