"""Runs that are killed at drawn moments and resumed until they are done."""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random

import child
import outcome
from trials import FaultError, Part, Trial

from trainyard import app
from trainyard.starting import PRELOAD as OWN

ROOT = Path(__file__).resolve().parents[2]
FIXED = ("tracker=none", "hook.checkpoint.min_seconds=0", "device=cpu")
PRELOAD = (*OWN, "hydra_plugins.trainyard_launcher", "torch.fx.experimental.symbolic_shapes")
"""Modules that a run imports, which are imported once for all runs."""
KILLS = 4
INTERRUPTED = (0, -signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM)
"""How a run may end that got a signal."""


def attempt(trial: Trial) -> None:
    """Train a drawn run twice: undisturbed, and killed up to four times and resumed.

    Raises:
        FaultError: a run ends otherwise than done or interrupted, or the two differ in a bit.
    """
    random = trial.random
    _write_text(trial.folder / "text.txt", Random(random.random()))
    overrides = [*_drawn(random), *FIXED, *trial.also]
    trial.tell(*overrides)
    for module in PRELOAD:
        importlib.import_module(module)
    undisturbed = _train(trial.folder, "undisturbed", overrides, counted=True)
    _check_ended(undisturbed, (0,), "the undisturbed run")
    for _ in range(random.randint(1, KILLS)):
        moment = child.draw(random, undisturbed.counts)
        trial.tell(moment)
        killed = _train(trial.folder, "killed", [*overrides, "resume=true"], moment)
        _check_ended(killed, INTERRUPTED, f"after {moment} the run")
        if killed.status == 0:
            break
    resumed = _train(trial.folder, "killed", [*overrides, "resume=true"])
    _check_ended(resumed, (0,), "the resumed run")
    found, expected = outcome.of(trial.folder / "killed"), outcome.of(trial.folder / "undisturbed")
    outcome.check_equal(found, expected, "killed and resumed against undisturbed")


def _train(
    folder: Path, name: str, overrides: Sequence[str], moment: child.Moment | None = None, *, counted: bool = False
) -> child.Ended:
    def main() -> None:
        sys.argv = [str(ROOT / "train.py"), *overrides, f"hydra.run.dir={name}"]
        app.main(ROOT / "conf")

    return child.run(main, folder, moment, counted=counted)


def _check_ended(ended: child.Ended, statuses: Sequence[int], what: str) -> None:
    if ended.status not in statuses:
        raise FaultError(f"{what} ended with status {ended.status}:\n{ended.tail()}")


def _drawn(random: Random) -> list[str]:
    """Return the overrides of a run of a second or two."""
    kind = random.choice(("rings", "rings", "digits", "digits", "text"))
    overrides = {"rings": _rings, "digits": _digits, "text": _text}[kind](random)
    overrides.append(f"seed={random.randint(0, 999)}")
    overrides += random.choice(
        (
            ["optim=sgd", "optim.lr=0.05", "optim.momentum=0.9"],
            ["optim=adam", "optim.lr=0.01"],
            ["optim=adamw", "optim.lr=0.01", "optim.amsgrad=true"],
            ["optim=rmsprop", "optim.lr=0.002", "optim.centered=true"],
            ["optim=adagrad"],
            ["optim=nadam"],
            ["optim=lion"],
        )
    )
    schedules = ("constant", "cosine", "exponential", "multistep", "poly", "step", "warmup_cosine", "plateau")
    overrides.append(f"schedule={random.choice((*schedules, 'onecycle'))}")
    if overrides[-1] == "schedule=plateau":
        overrides += ["schedule.patience=0", "schedule.threshold=0.05"]
    if random.random() < 0.5:
        overrides.append(f"loop.max_epochs={random.randint(2, 4)}")
        overrides.append(f"loop.val_interval={random.randint(1, 2)}")
    else:
        overrides += [
            "loop=iter",
            f"loop.max_iters={random.randint(15, 60)}",
            f"loop.val_interval={random.randint(4, 20)}",
        ]
    if random.random() < 0.6:
        overrides += ["hook.checkpoint.by=iter", f"hook.checkpoint.interval={random.randint(1, 9)}"]
    overrides.append(f"hook.checkpoint.max_keep={random.choice((1, 2, 3, 'null'))}")
    overrides.append(f"hook.logger.interval={random.randint(1, 12)}")
    hooks = random.sample(("ema", "nan_guard", "norms", "early_stop"), random.randint(0, 3))
    overrides += [f"hook=[{','.join(hooks)}]"] if hooks else []
    overrides += ["hook.early_stop.patience=100"] if "early_stop" in hooks else []
    overrides += ["hook.ema.decay=0.9"] if "ema" in hooks else []
    overrides += [f"accumulate={random.randint(2, 4)}"] if random.random() < 0.3 else []
    overrides += [f"clip_grad_norm={random.choice((0.1, 1.0))}"] if random.random() < 0.3 else []
    overrides += ["precision=bf16"] if random.random() < 0.15 else []
    return overrides


def _rings(random: Random) -> list[str]:
    return [
        "data=rings",
        f"data.num_samples={random.randint(150, 500)}",
        f"data.batch_size={random.choice((8, 16, 32))}",
        f"data.workers={random.choice((0, 0, 1, 2))}",
        f"data.drop_last={str(random.random() < 0.3).lower()}",
        *_mlp(random),
    ]


def _digits(random: Random) -> list[str]:
    cnn = ["model=cnn", f"model.channels=[{random.randint(2, 4)},4]", f"model.dropout={random.choice((0.0, 0.3))}"]
    resnet = ["model=resnet", "model.depth=8", "model.width=2"]
    model = random.choice((cnn, cnn, resnet, _mlp(random)))
    mixing = [f"+model/data_preprocessor={random.choice(('mixup', 'cutmix'))}"] if random.random() < 0.3 else []
    return ["data=digits", "data.batch_size=128", *model, *mixing]


def _mlp(random: Random) -> list[str]:
    return [
        "model=mlp",
        f"model.hidden=[{random.randint(4, 16)}]",
        f"model.dropout={random.choice((0.0, 0.2))}",
        f"model.batch_norm={str(random.random() < 0.3).lower()}",
    ]


def _text(random: Random) -> list[str]:
    size = ["model.dim=8", "model.heads=2", "model.layers=1", f"model.dropout={random.choice((0.0, 0.1))}"]
    return [
        "data=text",
        "data.path=text.txt",
        "data.context_length=16",
        "data.batch_size=16",
        "model=transformer",
        *size,
    ]


def _write_text(file: Path, random: Random) -> None:
    words = [f"{random.choice('bdfgklmnprst')}{random.choice('aeiou')}" for _ in range(40)]
    file.write_text(" ".join("".join(random.choices(words, k=random.randint(1, 3))) for _ in range(1200)))


PART = Part(
    "runs",
    "all tensors and numbers of the last checkpoint, the best weights and all points of the journal are bit-identical "
    "to those of an uninterrupted run",
    usual=4,
    attempt=attempt,
)
