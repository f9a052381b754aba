"""Runs whose checkpoints or journals were damaged, and which are resumed."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random

import child
import outcome
import overrides
from runs import PRELOAD, ROOT
from trials import FaultError, Part, Trial

from trainyard import app

RUN = (
    *("data=rings", "data.num_samples=90", "data.batch_size=16", "model=mlp", "model.hidden=[4]", "model.dropout=0.2"),
    *("tracker=none", "device=cpu", "hook.checkpoint.min_seconds=0", "hook.logger.interval=2", "hydra.run.dir=run"),
)
LINES = (
    *(
        '{"kind":"metrics","step":1,"values":{"train/loss":1e400}}',
        "[]",
        "null",
        "{}",
        '{"kind":"metrics"}',
        "[" * 5000,
    ),
    *(
        '{"kind":"metrics","step":"a","values":{}}',
        '{"kind":"metrics","step":3,"values":[1]}',
        '{"kind":3}',
        "\x00\x00",
    ),
    *(
        '{"kind":"status","status":"NOPE"}',
        '{"kind":"metrics","step":1e999,"values":{"a":null}}',
        "é",
        '{"kind":"new"}',
    ),
    '{"kind":"metrics","step":99999999999999999999999,"epoch":1,"time":1,"values":{"a":1}}',
)
"""Lines that no Trainyard writes."""


def damage_checkpoints(trial: Trial) -> None:
    """Damage checkpoints of a run, and resume it.

    Raises:
        FaultError: it ends with a traceback, or the bits are not those of the run that was left alone.
    """
    whole = _begun(trial)
    folder, random = trial.folder / "run" / "checkpoints", trial.random
    files = sorted(file for file in folder.iterdir() if file.is_file())
    for file in random.sample(files, random.choice((1, 1, 2, len(files)))):
        trial.tell(f"{file.name}: {_damage(random, file)}")
    _resume(trial, whole)


def damage_journals(trial: Trial) -> None:
    """Damage the journal of a run, and resume it.

    Raises:
        FaultError: it ends with a traceback, or the weights are not those of the run that was left alone.
    """
    whole = _begun(trial)
    file, random = trial.folder / "run" / "metrics.jsonl", trial.random
    lines = file.read_bytes().split(b"\n")
    match random.choice(("bytes", "bytes", "lines", "line", "line", "gone")):
        case "bytes":
            trial.tell(_damage(random, file))
        case "lines":
            random.shuffle(lines)
            file.write_bytes(b"\n".join(random.choices(lines, k=len(lines))))
            trial.tell("lines in another order")
        case "line":
            line = random.choice(LINES)
            lines.insert(random.randint(0, len(lines)), line.encode())
            file.write_bytes(b"\n".join(lines))
            trial.tell(f"with the line {line[:60]!r}")
        case "gone":
            file.unlink()
            trial.tell("removed")
    _resume(trial, whole)


def _begun(trial: Trial) -> Path:
    """Put a run of two epochs into the folder of the case, and return one of three that was left alone."""
    shared = trial.folder.parent / "shared"
    if not shared.exists():
        for module in PRELOAD:
            importlib.import_module(module)
        for name, epochs in (("begun", 2), ("whole", 3)):
            (shared / name).mkdir(parents=True)
            ended = _train(shared / name, [f"loop.max_epochs={epochs}"])
            if ended.status:
                raise FaultError(f"the undisturbed run ended with status {ended.status}:\n{ended.tail()}")
    shutil.copytree(shared / "begun", trial.folder, dirs_exist_ok=True)
    return shared / "whole" / "run"


def _train(folder: Path, further: Sequence[str]) -> child.Ended:
    def main() -> None:
        sys.argv = [str(ROOT / "train.py"), *RUN, *further]
        app.main(ROOT / "conf")

    return child.run(main, folder)


def _resume(trial: Trial, whole: Path) -> None:
    ended = _train(trial.folder, ["loop.max_epochs=3", "resume=true", *trial.also])
    overrides.check(ended, trial.folder, frozenset({"output.txt", "run"}))
    if ended.status == 0:
        found, expected = (outcome.last(each) for each in (trial.folder / "run", whole))
        outcome.check_equal(found["model"], expected["model"], "resumed after the damage against undisturbed")
        outcome.check_equal(found["optimizer"], expected["optimizer"], "resumed after the damage against undisturbed")
    left = [file.name for file in (trial.folder / "run").rglob("*.tmp")]
    if left:
        raise FaultError(f"temporary files are left: {', '.join(left)}")


def _damage(random: Random, file: Path) -> str:
    """Damage a file, and return how."""
    content = bytearray(file.read_bytes())
    kind = random.choice(("byte", "byte", "bytes", "cut", "empty", "noise", "hole", "twice", "json"))
    at = random.randrange(max(1, len(content)))
    if kind in ("byte", "bytes"):
        for _ in range(1 if kind == "byte" else random.randint(2, 50)):
            content[at] ^= random.randint(1, 255)
            at = random.randrange(len(content))
    elif kind == "noise":
        content = bytearray(random.randbytes(random.randint(1, 3000)))
    elif kind == "hole":
        del content[at : at + random.randint(1, 200)]
    elif kind == "twice":
        content[at:at] = content[at : at + random.randint(1, 200)]
    elif kind == "json":
        content = bytearray(json.dumps(random.choice(({"history": ["best.pt"]}, [], 3, {"history": [1]}))).encode())
    else:
        del content[0 if kind == "empty" else at :]
    file.write_bytes(content)
    return f"{kind} at {at}"


CHECKPOINTS = Part(
    "checkpoints",
    "a resumed run with damaged checkpoints has exit status 0, 1 or 2 and no traceback; its weights and its optimizer "
    "state are bit-identical to those of an uninterrupted run",
    usual=20,
    attempt=damage_checkpoints,
)
JOURNALS = Part(
    "journals",
    "a resumed run with a damaged journal has exit status 0, 1 or 2 and no traceback; its weights and its optimizer "
    "state are bit-identical to those of an uninterrupted run",
    usual=20,
    attempt=damage_journals,
)
