"""Runs in MLflow from which a search can learn. A separate process reads these runs, because the
process of a sweep does not import MLflow."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainyard.errors import TrainyardError
from trainyard.redaction import redact
from trainyard.track import uri as uris

READER = "trainyard.track.shipper.trials"


@dataclass(frozen=True)
class PastRun:
    """A run in MLflow.

    Attributes:
        name: the name of the run.
        kind: `sweep` or `configuration` for a run that trains nothing; None for other runs.
        state: `finished`, `pruned`, `failed`, `killed` or `running`.
        params: the params of the run, and the requested values of its config, as texts.
        metrics: the requested numbers, as far as the run has them.
    """

    name: str
    kind: str | None
    state: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]


def past_runs(
    given: str, uri: str | None, metrics: Sequence[str], keys: Sequence[str] = ()
) -> tuple[str, list[PastRun]]:
    """Return the runs of an experiment, the jobs of a sweep, or one run, in the order of their start times.

    Args:
        given: the name of an experiment, or the ID or the name of a run; for the run of a sweep, its jobs are returned.
        uri: the URI of the store; None for the store of the environment.
        metrics: the requested metrics. For a single metric, its best value is returned; for several, their values at
            the best checkpoint.
        keys: the keys of the config whose values are requested. A key that is no param of a run is read from the run's
            artifact `config.yaml`.

    Returns:
        A description of the runs for users, and the runs.

    Raises:
        TrainyardError: there is no such experiment or run, or MLflow cannot be reached.
    """
    store = redact(uris.resolve(uri, uris.launch_folder()))  # a password goes by the environment alone
    database = uris.sqlite_file(store)
    if database is not None and not database.is_file():  # MLflow would make it
        raise TrainyardError(f"The MLflow database {database} does not exist.")
    question = json.dumps({"uri": store, "given": given, "metrics": [*metrics], "keys": [*keys]})
    done = subprocess.run([sys.executable, "-m", READER], input=question, capture_output=True, text=True, check=False)
    try:
        told = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        said = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise TrainyardError(f"The runs in MLflow could not be read: {said}") from None
    if "error" in told:
        raise TrainyardError(f"{told['error'].rstrip('.')} ({store})")
    return f"{told['title']} in {store}", [PastRun(**each) for each in told["runs"]]
