"""Single runs in parallel processes, for the comparison with stacks.

A worker prints a line when it is ready, and trains for one window for each line that it reads. It ends when its input
ends.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from digits import must_be_captured, prepared, steps
from part import Part
from timing import Plan, Window

CONTROL = "nvidia-cuda-mps-control"
PATIENCE = 60.0
"""Seconds to wait for a worker's answer."""


@contextmanager
def side_by_side(
    part: Part, count: int, plan: Plan, environment: Mapping[str, str]
) -> Iterator[Callable[[Window], None]]:
    """Yield a function that lets `count` processes train for a window."""
    command = [sys.executable, "-m", "processes", part.device, json.dumps(asdict(plan))]
    workers = [
        subprocess.Popen(
            [*command, str(member)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        for member in range(count)
    ]

    def train(window: Window) -> None:
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        told = [json.loads(_answer(worker)) for worker in workers]
        window.told(1 / sum(1 / own["microseconds"] for own in told), told[0]["loss"])

    try:
        for worker in workers:
            _answer(worker)
        yield train
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def _answer(worker: subprocess.Popen[str]) -> str:
    """Return the next line of a worker.

    Raises:
        RuntimeError: the worker printed no line within `PATIENCE` seconds, or it has ended.
    """
    assert worker.stdout is not None
    poll = select.poll()
    poll.register(worker.stdout, select.POLLIN)
    line = worker.stdout.readline() if poll.poll(PATIENCE * 1000) else ""
    if not line:
        raise RuntimeError("a process did not answer")
    return line


def has_mps() -> bool:
    """Return whether CUDA's multi-process service is installed on this machine."""
    return shutil.which(CONTROL) is not None


@contextmanager
def mps(folder: Path) -> Iterator[dict[str, str]]:
    """Run the multi-process service, and yield the environment of its clients. No setting of the device is changed.

    Raises:
        RuntimeError: the service does not start.
    """
    environment = {"CUDA_MPS_PIPE_DIRECTORY": str(folder / "pipe"), "CUDA_MPS_LOG_DIRECTORY": str(folder / "log")}
    for own in environment.values():
        Path(own).mkdir(parents=True)
    given = {**os.environ, **environment}
    begun = subprocess.run([CONTROL, "-d"], env=given, capture_output=True, text=True, check=False, timeout=20)
    if begun.returncode:
        raise RuntimeError(f"{CONTROL} -d: {(begun.stderr or begun.stdout).strip()}")
    try:
        yield environment
    finally:
        subprocess.run([CONTROL], input="quit\n", env=given, capture_output=True, text=True, check=False, timeout=20)


def main() -> None:
    device, plan, member = sys.argv[1], Plan(**json.loads(sys.argv[2])), int(sys.argv[3])
    answers, sys.stdout = sys.stdout, sys.stderr
    runner = prepared(None, device, seed=member)
    losses = steps(runner)
    print("ready", file=answers, flush=True)
    for _ in sys.stdin:
        window = Window(plan, torch.cuda.synchronize if device != "cpu" else lambda: None)
        for loss in losses:
            if window.step(loss):
                break
        must_be_captured(runner)
        print(json.dumps({"microseconds": window.microseconds, "loss": window.loss}), file=answers, flush=True)


if __name__ == "__main__":
    main()
