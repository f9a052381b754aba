"""Runs that cannot be repeated, because a file is missing."""

from pathlib import Path
from typing import Any

import pytest

from trainyard.catalog.again import from_config, with_changes
from trainyard.errors import TrainyardError


def test_a_run_of_a_runner_in_python_has_no_command(make_run: Any, tmp_path: Path) -> None:
    run = make_run()
    (run.directory / "config.yaml").unlink()
    with pytest.raises(TrainyardError, match=r"has no \.hydra/overrides\.yaml, .* Runs of a Runner in Python,"):
        with_changes(run, [])
    with pytest.raises(TrainyardError, match=r"has no readable config\.yaml, .* start their program again\.$"):
        from_config(run, tmp_path, tmp_path / "again")


def test_overrides_in_another_form_are_refused(make_run: Any) -> None:
    run = make_run()
    (run.directory / ".hydra").mkdir()
    (run.directory / ".hydra" / "overrides.yaml").write_text("a: 1")
    with pytest.raises(TrainyardError, match="cannot be read: the file does not contain a list of overrides"):
        with_changes(run, [])
