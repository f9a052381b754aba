"""Reports of jobs, as the head reads them from journals."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from trainyard.sweep.events import Reported
from trainyard.sweep.plan import Job
from trainyard.sweep.reports import Reports
from trainyard.track.journal import Journal
from trainyard.track.sweep_position import Rungs


def test_a_report_has_what_is_bounded_as_it_was_at_the_rung(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for epoch in (1, 2, 3):
        journal.metrics(10 * epoch, {"train/loss": 1.0 / epoch, "other": 1.0}, epoch)
        journal.metrics(10 * epoch, {"val/accuracy": 0.1 * epoch}, epoch)
        if epoch in (1, 3):
            journal.tags({"rung": epoch, "model/parameters": 2410})
    journal.metrics(40, {"train/loss": 0.0}, 4)
    journal.close()
    job = Job(3, (), DictConfig({}), tmp_path, {"objective": "val/accuracy"})
    reports = Reports()
    reports.metrics = ("train/loss", "model/parameters", "test/loss")
    reports.begin(job, Rungs((1, 3)))
    assert reports.new(3, 2) is None, "no rung"
    assert reports.new(3, 1) == Reported(3, 1, 0.1, (("train/loss", 1.0), ("model/parameters", 2410.0)))
    assert reports.new(3, 3) == Reported(3, 3, 0.1 * 3, (("train/loss", 1 / 3), ("model/parameters", 2410.0)))

    alone = Reports()
    alone.begin(job, Rungs((1, 3)))
    assert alone.new(3, 1) == Reported(3, 1, 0.1)
