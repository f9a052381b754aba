"""Process that reads runs from MLflow for a search: `python -m trainyard.track.shipper.trials`.

It receives its query as JSON on standard input, and answers with JSON: see `trainyard.track.past_runs`.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trainyard.config.saved import saved_config, value_text
from trainyard.errors import TrainyardError, nearest, quoted
from trainyard.track.shipper.__main__ import configure

configure()  # before mlflow is imported

from mlflow import MlflowClient  # noqa: E402
from mlflow.entities import Experiment, Run  # noqa: E402

from trainyard.track.shipper.fetch import find  # noqa: E402
from trainyard.track.shipper.sanitize import clean_name, first_line  # noqa: E402
from trainyard.track.uri import with_password  # noqa: E402

CONFIG = "config.yaml"
PARENT = "mlflow.parentRunId"
PARAMETERS = "model/parameters"  # is a tag of a run, no metric
_ID = re.compile(r"[0-9a-f]{32}")
_PAGE = 1000
_SHOWN = 5  # runs in a message


def answer(uri: str, given: str, metrics: Sequence[str], keys: Sequence[str] = ()) -> dict[str, Any]:
    """Return the runs of an experiment, of a sweep, or one run.

    Args:
        uri: the URI of the store.
        given: the name of an experiment, or the ID or the name of a run.
        metrics: the names of the requested metrics. For a single metric, its best value is returned.
        keys: the names of the requested params, which are read from the saved config of a run if they are no params.

    Raises:
        TrainyardError: there is no such experiment or run, or MLflow cannot be reached.
    """
    try:
        client = MlflowClient(with_password(uri))
        title, runs = _runs(client, given)
        configs = _Configs(client, keys)
        return {"title": title, "runs": [_told(client, run, metrics, configs) for run in runs]}
    except TrainyardError:
        raise
    except Exception as error:
        raise TrainyardError(f"MLflow could not be queried: {first_line(error)}.") from error


def _runs(client: MlflowClient, given: str) -> tuple[str, list[Run]]:
    experiment: Experiment | None = client.get_experiment_by_name(given)
    if experiment is not None:
        return f"the experiment {given}", list(_found(client, [experiment.experiment_id], ""))
    run = find(client, given) if _ID.fullmatch(given) else None
    if run is None:
        experiments = list(client.search_experiments())
        everywhere = [each.experiment_id for each in experiments]
        named = list(_found(client, everywhere, f"attributes.run_name = '{given}'")) if "'" not in given else []
        if len(named) > 1:
            ids = ", ".join(each.info.run_id for each in named[:_SHOWN]) + (", …" if len(named) > _SHOWN else "")
            raise TrainyardError(f"{len(named)} runs in MLflow have that name. Give the ID of one of them: {ids}.")
        if not named:
            close = nearest(given, [each.name for each in experiments])
            meant = f"; the nearest experiment is {quoted(close)}" if close else ""
            raise TrainyardError(f"MLflow has no experiment with that name, and no run with that name or ID{meant}.")
        (run,) = named
    below = list(_found(client, [run.info.experiment_id], f"tags.`{PARENT}` = '{run.info.run_id}'"))
    return f"the run {run.info.run_name}", below or [run]


def _found(client: MlflowClient, experiments: list[str], query: str) -> Iterator[Run]:
    token = None
    while experiments:
        page = client.search_runs(experiments, query, max_results=_PAGE, order_by=["start_time"], page_token=token)
        yield from page
        token = page.token
        if not token:
            return


class _Configs:
    """Saved configs of runs, for keys that are no params: defaults, and fixed overrides of a sweep.

    Args:
        client: the client of the store.
        keys: the requested keys.
    """

    def __init__(self, client: MlflowClient, keys: Sequence[str]) -> None:
        self._client = client
        self._keys = keys
        self._can_read = True

    def params(self, run: Run) -> dict[str, str]:
        """Return the params of a run, and the requested values of its config."""
        found = dict(run.data.params)
        missing = [key for key in self._keys if key not in found]
        if not missing or not self._can_read or run.data.tags.get("kind") or run.info.status != "FINISHED":
            return found
        try:
            if all(entry.path != CONFIG for entry in self._client.list_artifacts(run.info.run_id)):
                return found
            with tempfile.TemporaryDirectory() as folder:
                file = Path(self._client.download_artifacts(run.info.run_id, CONFIG, folder))
                config = saved_config(file.read_text(encoding="utf-8"))
        except Exception:  # the artifacts cannot be reached: each further attempt would wait as long
            self._can_read = False
            return found
        values = {key: value_text(config, key) for key in missing}
        return found | {key: value for key, value in values.items() if value is not None}


def _told(client: MlflowClient, run: Run, metrics: Sequence[str], configs: _Configs) -> dict[str, Any]:
    tags = run.data.tags
    state = "pruned" if tags.get("pruned") == "True" else run.info.status.lower()
    return {
        "name": run.info.run_name or run.info.run_id,
        "kind": tags.get("kind"),
        "state": state,
        "params": configs.params(run),
        "metrics": {name: value for name in metrics if (value := _value(client, run, name, metrics)) is not None},
    }


def _value(client: MlflowClient, run: Run, name: str, metrics: Sequence[str]) -> float | None:
    """Return the best value of a single metric; for several, their values at the best checkpoint, as far as
    possible."""
    found, key = run.data.metrics, clean_name(name)
    if name == PARAMETERS and "parameters" in run.data.tags:
        return float(run.data.tags["parameters"])
    if f"best/{key}" in found:
        return float(found[f"best/{key}"])
    if key in found and len(metrics) > 1 and "best/step" in found:
        points = client.get_metric_history(run.info.run_id, key)
        there = [point.value for point in points if point.step == found["best/step"]]
        if there:
            return float(there[-1])
    return float(found[key]) if key in found else None


def main() -> None:
    question = json.load(sys.stdin)
    try:
        told = answer(question["uri"], question["given"], question["metrics"], question["keys"])
    except TrainyardError as error:
        told = {"error": str(error)}
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
