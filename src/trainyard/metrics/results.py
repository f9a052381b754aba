"""Named results of several metrics."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from trainyard.errors import ConfigError
from trainyard.metrics.metric import Metric


def results_of(metrics: Mapping[str, Metric]) -> dict[str, Tensor]:
    """Compute the metrics by name: a single result has the name of its metric, several results have their own names.

    If a metric has a `prefix`, the names start with this prefix: `coarse/accuracy`.

    Raises:
        ConfigError: two metrics return results with the same name.
    """
    results: dict[str, Tensor] = {}
    givers: dict[str, str] = {}
    for name, metric in metrics.items():
        result = metric.compute()
        for key, value in (result if isinstance(result, Mapping) else {name: result}).items():
            full = f"{metric.prefix}/{key}" if metric.prefix else key
            if full in results:
                raise ConfigError(
                    f"metric.{name}",
                    full,
                    f"names that no other metric uses: metric.{givers[full]} also returns {full!r}",
                    hint=f"With the prefix {name!r}, the results of this metric are named {name}/{key} and so on; "
                    "docs/evaluation.md shows how to set it.",
                )
            results[full], givers[full] = value, name
    return results
