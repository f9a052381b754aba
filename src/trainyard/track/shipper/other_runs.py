"""References of one run to others, which may have to be shipped first."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from trainyard.track.shipped import TRAINING

if TYPE_CHECKING:
    from trainyard.track.shipper.store import Store

_REFERENCE = re.compile(r"run:([0-9a-f]{32})")


class AwaitedError(Exception):
    """A required part of another run is not in MLflow yet."""


def linked(store: Store, experiment_id: str, tags: Mapping[str, str]) -> dict[str, str]:
    """Return tags in which the IDs of runs are replaced with those in MLflow: see `Journal.linked_tags`.

    Args:
        store: the store of the runs.
        experiment_id: the ID of their experiment.
        tags: the tags.

    Raises:
        AwaitedError: a run is not there yet.
    """

    def run_id(own: str) -> str:
        found = store.known(experiment_id, own)
        if found is None:
            raise AwaitedError(f"The run {own} has not been uploaded yet.")
        return found

    def replaced(text: str) -> str:
        text = re.sub(
            rf"\]\({_REFERENCE.pattern}\)",
            lambda match: f"](#/experiments/{experiment_id}/runs/{run_id(match[1])}?{TRAINING})",
            text,
        )
        return _REFERENCE.sub(lambda match: run_id(match[1]), text)

    return {key: replaced(value) for key, value in tags.items()}
