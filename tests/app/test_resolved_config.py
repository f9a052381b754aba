"""Runs from the resolved config of another run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

RESOLVED = ["-cn", "config", "hydra.run.dir=second"]


def test_tracking_is_turned_off(command: Any, tmp_path: Path) -> None:
    """The settings of its tracker remain, because an option is merged into them."""
    status, _ = command("loop.max_epochs=1", "hydra.run.dir=first")
    assert status in (0, None)
    config = yaml.safe_load(Path("first/config.yaml").read_text())
    config["tracker"] = {
        "_target_": "trainyard.track.MLflowTracker",
        "uri": f"sqlite:///{tmp_path}/none.db",
        "experiment": "mine",
        "tags": {"team": "vision"},
    }
    Path("first/config.yaml").write_text(yaml.safe_dump(config))
    flags = ["-cp", str(Path("first").resolve()), *RESOLVED]
    status, told = command(*flags, "tracker=none", quick=[])
    assert status == 2
    assert "tracker=none: this config contains the values of tracker, and its defaults list selects no option" in told
    assert told.strip().endswith("use +tracker=none")
    status, _ = command(*flags, "+tracker=none", quick=[])
    assert status in (0, None)
    assert Path("second/metrics.jsonl").exists()
    assert not (tmp_path / "none.db").exists()
