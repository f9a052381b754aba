"""The tables of docs/ about files say what is in the files."""

import json
from pathlib import Path

import torch
from markdown_tables import codes, names, page, table

from trainyard.application import StartedAs
from trainyard.runner import Runner
from trainyard.sweep.decisions import Decision, KnownFit
from trainyard.sweep.events import (
    Asked,
    Began,
    Emptied,
    Ended,
    Inherited,
    Joined,
    Origin,
    Paused,
    Proposed,
    Queued,
    Reported,
    SlotsGained,
    SlotsLost,
    Started,
    Stopping,
    Unit,
)
from trainyard.sweep.manifest import FILE, Manifest
from trainyard.sweep.steering import Command
from trainyard.track import Journal
from trainyard.track.sweep_position import Rungs


def test_every_entry_of_a_checkpoint_has_a_row(tmp_path: Path) -> None:
    Runner(
        {"_target_": "trainyard.models.MLP", "in_features": 2, "num_classes": 2, "hidden": [2]},
        {"_target_": "trainyard.data.Rings", "num_samples": 30, "val_fraction": 0},
        {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1},
        loop={"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": 1},
        hooks={"ema": {"_target_": "trainyard.hooks.EMA"}, "checkpoint": {"_target_": "trainyard.hooks.Checkpoint"}},
        device="cpu",
        work_dir=tmp_path,
    ).train()
    state = torch.load(tmp_path / "checkpoints/epoch_0001.pt", weights_only=True)
    shown = names(table(page("resume.md"), "key"), "key")
    assert sorted(shown) == sorted(state)


def test_every_kind_of_record_in_a_journal_has_a_row(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.metrics(1, {"train/loss": 0.5}, epoch=1, of="model")
        journal.array("val/confusion", 1, [[1, 0], [0, 1]])
        journal.artifact("figures", "figures")
        journal.model("checkpoints/best.pt", "mine:load", "mine:predict", name="last", step=1, form="export")
        journal.inputs([{"name": "digits/train", "digest": "0f", "context": "train"}])
        journal.register("digits", "best", of="3")
        journal.linked_tags({"winner.run": "run:" + "0" * 32})
        journal.params({"optim.lr": 0.1})
        journal.tags({"team": "vision"})
        journal.status("FINISHED")
    found = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    records = {record["kind"]: set(record) - {"kind", "time"} for record in found}
    assert len(records) == len(found) == 10
    rows = table(page("tracking.md"), "kind")
    assert {codes(row["kind"])[0]: set(codes(row["fields"])) for row in rows} == records


def test_every_kind_of_record_in_a_manifest_has_a_row(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path / FILE)
    manifest.begin(StartedAs("train.py"), {"sampler": {"_target_": "optuna.samplers.TPESampler"}}, 3)
    manifest.define_all([Proposed(0, ("seed=0",), Rungs((1,)), "0", Origin(0, 0, ("seed",), "epoch_0001.pt"), {})])
    manifest.measured({"0f": KnownFit(1, "", "", 1)})
    manifest.decide([Decision((0,), "cpu", 1)])
    manifest.decide([Decision((0,), "cpu", 1, lanes=(1,), width=2, epochs=(0,), iters=(0,))])
    unit = Unit((0,), 2, 1, 3.0, ("cpu",), Rungs((1,)), ((0, Rungs((2,))),), fed=True)
    manifest.log(Began(), SlotsGained(((0, "cpu"),)), SlotsLost((0,)), Queued((unit,), "again"), Started(0))
    manifest.log(Joined(0, (0,)), Emptied(0), Inherited(0, 0, 1, ("seed=0",), ("optim.lr",), "epoch_0001.pt"))
    manifest.log(Reported(0, 1, 0.5, (("val/loss", 0.1),)), Asked(0, "stop", "by hand"), Stopping("enough"))
    manifest.log(Paused(0, by_hand=True))
    manifest.answer(Command("000001-00", "stop", 0))
    manifest.log(Ended(0, "done", 1.0, 0.5, None, 2))
    records: dict[str, set[str]] = {}
    for line in (tmp_path / FILE).read_text().splitlines():
        record = json.loads(line)
        parts = [
            record,
            record.get("origin", {}),
            *(part for part in record.get("tasks", record.get("units", ())) if isinstance(part, dict)),
        ]
        records.setdefault(record["kind"], set()).update(*(set(part) - {"kind", "time"} for part in parts))
    rows = {codes(row["kind"])[0]: set(codes(row["fields"])) for row in table(page("sweeps.md"), "kind")}
    assert rows == records
