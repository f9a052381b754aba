"""Data whose number of batches is unknown, wrong, or changes: trained, killed and resumed, against a loop by hand."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import child
import drawn_loaders
import outcome
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from trials import FaultError, Part, Trial

from trainyard.errors import TrainyardError
from trainyard.hooks import Checkpoint, Hook, Logger
from trainyard.models import Supervised
from trainyard.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

RATE = 0.05
BOUND = 1e-10
SEEN = "seen.jsonl"
KILLED = (0, -signal.SIGKILL, -signal.SIGTERM)
Loop = Callable[[], Any]


class Seen(Hook):
    """Writes down, before each iteration, its number, the epoch and the numbers of the samples."""

    priority = "HIGHEST"

    def __init__(self, file: Path) -> None:
        self._fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any) -> None:
        line = json.dumps([runner.iter, runner.epoch, batch_idx, drawn_loaders.numbers(data_batch)])
        os.write(self._fd, f"{line}\n".encode())


def attempt(trial: Trial) -> None:
    """Train on a drawn loader by hand, undisturbed, and killed up to three times and resumed.

    Raises:
        FaultError: a batch is left out, comes twice or in another place; the training ends too early or never; the
            weights or the validation's loss are not those by hand; a killed run is not the undisturbed one.
    """
    random = trial.random
    plan, val = drawn_loaders.drawn(random), drawn_loaders.drawn(random)
    val = replace(val, counts=val.counts[:1], drop_last=False, kind="stream" if val.kind == "stateful" else val.kind)
    epochs, iterations = random.randint(2, 4), random.randint(5, 40)
    by_epoch = random.random() < 0.5
    interval = random.randint(1, 6)
    trial.tell(f"train={plan} val={val}", f"epochs={epochs}" if by_epoch else f"iterations={iterations}")

    def loop() -> Any:
        return EpochBasedTrainLoop(epochs) if by_epoch else IterBasedTrainLoop(iterations, val_interval=7)

    def train(name: str) -> Callable[[], dict[str, Any]]:
        return lambda: _train(trial.folder / name, plan, val, loop(), interval)

    if random.random() < 0.1:
        trial.tell("the training set is empty")
        plan = replace(plan, counts=(0,))
        _check_refused(child.run(train("empty"), trial.folder))
        return
    by_hand = child.run(lambda: _by_hand(plan, val, epochs if by_epoch else None, iterations), trial.folder)
    _check_ended(by_hand, (0,), "the loop by hand")
    undisturbed = child.run(train("undisturbed"), trial.folder, counted=True)
    _check_ended(undisturbed, (0,), "the training")
    if undisturbed.value["error"] is not None:
        raise FaultError(f"the training is refused: {undisturbed.value['error']}")
    _check_seen(trial.folder / "undisturbed", by_hand.value["seen"])
    outcome.check_equal(undisturbed.value["weights"], by_hand.value["weights"], "weights against those by hand", BOUND)
    outcome.check_equal(undisturbed.value["loss"], by_hand.value["loss"], "val/loss against that by hand", BOUND)
    for _ in range(random.randint(1, 3)):
        moment = child.draw(random, undisturbed.counts)
        trial.tell(moment)
        _check_ended(child.run(train("killed"), trial.folder, moment), KILLED, f"after {moment} the training")
    resumed = child.run(train("killed"), trial.folder)
    _check_ended(resumed, (0,), "the resumed training")
    if resumed.value["error"] is not None:
        raise FaultError(f"the training is not resumed: {resumed.value['error']}")
    _check_seen(trial.folder / "killed", by_hand.value["seen"])
    found, expected = (outcome.of(trial.folder / name) for name in ("killed", "undisturbed"))
    outcome.check_equal(found, expected, "killed and resumed against undisturbed")


def _model() -> Supervised:
    torch.manual_seed(0)
    return Supervised(
        nn.Sequential(nn.Linear(drawn_loaders.FEATURES, 8), nn.Tanh(), nn.Linear(8, drawn_loaders.CLASSES))
    )


def _train(
    work_dir: Path, plan: drawn_loaders.Plan, val: drawn_loaders.Plan, loop: Any, interval: int
) -> dict[str, Any]:
    """Train as a user does, or go on; return the weights and the last loss of the validation."""
    torch.set_default_dtype(torch.float64)
    work_dir.mkdir(exist_ok=True)
    hooks = {
        "seen": Seen(work_dir / SEEN),
        "logger": Logger(interval=2),
        "checkpoint": Checkpoint(interval=interval, by="iter", max_keep=2),
    }
    try:
        runner = Runner(
            model=_model(),
            data={"train": drawn_loaders.loader_of(plan), "val": drawn_loaders.loader_of(val)},
            optim={"_target_": "torch.optim.SGD", "_partial_": True, "lr": RATE},
            loop=loop,
            hooks=hooks,
            metrics={"loss": {"_target_": "trainyard.metrics.CrossEntropy"}},
            device="cpu",
            work_dir=work_dir,
            resume=True,
        )
        runner.train()
    except TrainyardError as error:
        return {"error": str(error)}
    weights = [parameter.tolist() for parameter in runner.model.parameters()]
    return {"error": None, "weights": weights, "loss": runner.members[0].metrics["val/loss"]}


def _by_hand(plan: drawn_loaders.Plan, val: drawn_loaders.Plan, epochs: int | None, iterations: int) -> dict[str, Any]:
    """Train with nothing but torch; `iterations` count where there are no epochs to count."""
    torch.set_default_dtype(torch.float64)
    model = _model().net
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    seen: list[Any] = []
    for epoch, index, (inputs, target) in _endless(plan):
        if epoch == epochs or (epochs is None and len(seen) == iterations):
            break
        seen.append([len(seen), epoch, index, drawn_loaders.numbers((inputs, target))])
        optimizer.zero_grad()
        cross_entropy(model(inputs), target).backward()
        optimizer.step()
    with torch.no_grad():
        batches = list(drawn_loaders.loader_of(val))
        losses = [cross_entropy(model(inputs), target, reduction="sum") for inputs, target in batches]
    loss = float(sum(losses)) / sum(len(target) for _, target in batches)
    return {"seen": seen, "weights": [parameter.tolist() for parameter in model.parameters()], "loss": loss}


def _endless(plan: drawn_loaders.Plan) -> Iterator[tuple[int, int, Any]]:
    """Yield each batch with its epoch and its number in it."""
    loader, epoch = drawn_loaders.loader_of(plan), 0
    while True:
        drawn_loaders.set_epoch(loader, epoch)
        for index, batch in enumerate(loader):
            yield epoch, index, batch
        epoch += 1


def _check_seen(work_dir: Path, expected: list[Any]) -> None:
    """Check that each iteration had the batch that it has by hand, each time that it was computed."""
    lines = [json.loads(line) for line in (work_dir / SEEN).read_text().splitlines()]
    for line in lines:
        if line[0] >= len(expected):
            raise FaultError(f"{work_dir.name}: iteration {line[0]} is one too many: by hand there are {len(expected)}")
        if line != expected[line[0]]:
            raise FaultError(
                f"{work_dir.name}: [iteration, epoch, batch, samples] is {line}, by hand {expected[line[0]]}"
            )
    missing = {line[0] for line in expected} - {line[0] for line in lines}
    if missing:
        raise FaultError(
            f"{work_dir.name}: {len(missing)} of {len(expected)} iterations are missing, such as {min(missing)}"
        )


def _check_ended(ended: child.Ended, statuses: tuple[int, ...], what: str) -> None:
    if ended.status not in statuses:
        raise FaultError(f"{what} ended with status {ended.status}:\n{ended.tail()}")


def _check_refused(ended: child.Ended) -> None:
    _check_ended(ended, (0,), "the training on an empty set")
    if ended.value["error"] is None:
        raise FaultError("a training on an empty set is not refused")
    if "train" not in ended.value["error"]:
        raise FaultError(f"the refusal of an empty set does not name it: {ended.value['error']}")


PART = Part(
    "lengths",
    "each batch of each epoch, the weights and the validation loss (to 1e-10) equal those of a hand-written loop; "
    "after kills, the checkpoint and the journal are bit-identical to those of an uninterrupted run",
    usual=6,
    attempt=attempt,
)
