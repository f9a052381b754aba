import gzip
import json
import os
import sys
from pathlib import Path
from typing import Any

import forked
import pytest

from trainyard.errors import ConfigError
from trainyard.hooks import Hook, Profiler
from trainyard.track import read


def steps(trace: Any) -> Any:
    """The numbers of the iterations in a Chrome trace."""
    with gzip.open(trace) as file:
        events = json.load(file)["traceEvents"]
    names = {event["name"] for event in events if event["name"].startswith("ProfilerStep#")}
    return sorted(int(name.removeprefix("ProfilerStep#")) for name in names), {event["name"] for event in events}


def traces(folder: Any) -> Any:
    return {file.name: steps(file)[0] for file in sorted((folder / "profile").glob("*.json.gz"))}


def test_it_records_the_iterations_that_it_was_told_to(make: Any, tmp_path: Path) -> None:
    make({"profiler": Profiler(skip_first=2, wait=1, warmup=1, active=3, repeat=2)}, work_dir=tmp_path).train()
    assert traces(tmp_path) == {"iter_00000007.json.gz": [4, 5, 6], "iter_00000012.json.gz": [9, 10, 11]}
    _, names = steps(tmp_path / "profile" / "iter_00000007.json.gz")
    assert {"aten::addmm", "aten::log_softmax"} <= names, "the model's operators are in it"
    assert "aten::addmm" in (tmp_path / "profile" / "iter_00000012.txt").read_text()


def test_its_files_are_artifacts(make: Any, tmp_path: Path) -> None:
    make({"profiler": Profiler(skip_first=0, active=2)}, work_dir=tmp_path).train()
    uploaded = [(r["path"], r["to"]) for r, _ in read(tmp_path / "metrics.jsonl") if r["kind"] == "artifact"]
    assert uploaded == [(f"profile/iter_00000004.{kind}", "profile") for kind in ("json.gz", "txt")]


@pytest.mark.parametrize(("repeat", "expected"), [(0, [3, 6, 9, 12, 15, 18]), (1, [3]), (9, [3, 6, 9, 12, 15, 18])])
def test_it_ends_after_its_cycles_or_with_the_run(make: Any, tmp_path: Path, repeat: int, expected: Any) -> None:
    hook = Profiler(skip_first=0, wait=0, warmup=1, active=2, repeat=repeat)
    make({"profiler": hook}, work_dir=tmp_path).train()
    assert list(traces(tmp_path)) == [f"iter_{iteration:08d}.json.gz" for iteration in expected]


def test_cycles_until_the_end_of_the_run_begin_after_the_skipped_iterations(make: Any, tmp_path: Path) -> None:
    make({"profiler": Profiler(wait=0, active=2, repeat=0)}, work_dir=tmp_path).train()
    assert list(traces(tmp_path)) == [f"iter_{iteration:08d}.json.gz" for iteration in (13, 16, 18)]


def test_a_cycle_that_the_end_cuts_short_is_kept(make: Any, tmp_path: Path) -> None:
    class Fail(Hook):
        def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any, outputs: Any) -> None:
            if runner.iter == 5:
                raise RuntimeError("out of luck")

    runner = make({"profiler": Profiler(skip_first=1, active=100), "fail": Fail()}, work_dir=tmp_path)
    with pytest.raises(RuntimeError, match="out of luck"):
        runner.train()
    assert traces(tmp_path) == {"iter_00000005.json.gz": [3, 4]}


def test_it_changes_nothing_of_the_training(make: Any) -> None:
    profiled, plain = make({"profiler": Profiler(record_shapes=True, profile_memory=True)}), make({})
    assert profiled.train() == plain.train()


TRAINING = """
import sys
from pathlib import Path
from trainyard.hooks import ModelSummary, Profiler
from trainyard.runner import Runner
Runner(
    {"_target_": "trainyard.models.MLP", "in_features": "auto", "num_classes": "auto", "hidden": [8]},
    {"_target_": "trainyard.data.Rings", "num_samples": 320},
    {"_target_": "torch.optim.Adam", "_partial_": True},
    hooks={"profiler": Profiler(skip_first=0), "summary": ModelSummary()},
    metrics={"loss": {"_target_": "trainyard.metrics.CrossEntropy"}},
    loop={"_target_": "trainyard.runner.IterBasedTrainLoop", "max_iters": 8},
    work_dir=sys.argv[1], device="cpu",
).train()
assert list(Path(sys.argv[1], "profile").glob("*.json.gz"))
assert "torch._dynamo" not in sys.modules, "imported"
import torch
assert hasattr(torch, "_inductor"), "hidden for good"
"""


def test_neither_it_nor_the_summary_imports_dynamo(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"}
    done = forked.run([sys.executable, "-c", TRAINING, str(tmp_path / "run")], env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("key", "given"), [("active", 0), ("wait", -1), ("repeat", 1.5), ("skip_first", "ten")])
def test_settings_that_cannot_be(key: str, given: float | str) -> None:
    with pytest.raises(ConfigError) as error:
        Profiler(**{key: given})
    assert error.value.key == key
