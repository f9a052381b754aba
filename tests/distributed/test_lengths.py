"""Ranks whose streams differ in length end their epochs together."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def test_an_epoch_ends_for_all_ranks_with_the_shortest(start_ranks: Any, tmp_path: Path) -> None:
    start_ranks("streams_of_ranks.py", [str(tmp_path)])
    for rank in range(2):
        told = (tmp_path / f"{rank}.log").read_text()
        assert told.count("The training data ends earlier on 1 of 2 devices") == 2  # once a run
        assert (
            "Refused: The devices read 3 and 5 batches of 'val'. Each device evaluates its share of the batches" in told
        )
