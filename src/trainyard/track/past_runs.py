"""Runs in MLflow that a search can learn from, read by a process of its own: this one does not import MLflow."""

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
        name: its name.
        kind: `sweep` or `configuration` of a run that trains nothing; None of others.
        state: `finished`, `pruned`, `failed`, `killed` or `running`.
        params: its params, as texts.
        metrics: the numbers that were asked for, as far as it has them.
    """

    name: str
    kind: str | None
    state: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]


def past_runs(given: str, uri: str | None, metrics: Sequence[str]) -> tuple[str, list[PastRun]]:
    """Return the runs of an experiment, the jobs of a sweep, or one run, in the order of their start.

    Args:
        given: the name of an experiment, or the id or the name of a run; that of a sweep's own run stands for its jobs.
        uri: of the store; None for that of the environment.
        metrics: the numbers that are wanted: of one alone its best value, of several those at the best checkpoint.

    Returns:
        What these are, for people; and the runs.

    Raises:
        TrainyardError: there is no such experiment or run, or MLflow cannot be asked.
    """
    store = redact(uris.resolve(uri, uris.launch_folder()))  # a password goes by the environment alone
    database = uris.sqlite_file(store)
    if database is not None and not database.is_file():  # MLflow would make it
        raise TrainyardError(f"The MLflow database {database} does not exist")
    question = json.dumps({"uri": store, "given": given, "metrics": [*metrics]})
    done = subprocess.run([sys.executable, "-m", READER], input=question, capture_output=True, text=True, check=False)
    try:
        told = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        said = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise TrainyardError(f"The runs in MLflow could not be read: {said}") from None
    if "error" in told:
        raise TrainyardError(f"{told['error'].rstrip('.')} ({store})")
    return f"{told['title']} in {store}", [PastRun(**each) for each in told["runs"]]
