"""A stack trains, and jobs join it, without `torch._dynamo`, whose import takes a second in each process."""

from __future__ import annotations

import os
import sys

import forked
from waiting import LIMIT

TRAINING = """
import sys
from trainyard.fused.feed import LaneQueue
from trainyard.fused.runner import FusedRunner

CONFIG = {
    "model": {"_target_": "trainyard.models.MLP", "in_features": 64, "num_classes": 10, "hidden": [8], "dropout": 0.1},
    "data": {"_target_": "trainyard.data.Digits"},
    "optim": {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.01},
    "loop": {"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": 1},
    "hook": {},
    "device": "cpu",
}
queue = LaneQueue([CONFIG | {"seed": 3}])
FusedRunner([CONFIG | {"seed": seed} for seed in range(3)], feed=queue).train()
assert len(queue.spans) > 3, "one has joined"
assert "torch._dynamo" not in sys.modules
"""


def test_a_stack_does_not_import_dynamo() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = forked.run([sys.executable, "-c", TRAINING], timeout=LIMIT, env=environment)
    assert done.returncode == 0, done.stderr
