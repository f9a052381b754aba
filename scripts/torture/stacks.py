"""Random stacks against their members alone, in float64."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import child
import outcome
import random_nets
import torch
from omegaconf import OmegaConf
from torch import nn
from trials import FaultError, Part, Trial

from trainyard.errors import TrainyardError
from trainyard.fused.probe import why
from trainyard.fused.runner import FusedRunner
from trainyard.hooks import Hook
from trainyard.runner import Runner

ROOT = Path(__file__).resolve().parents[2]
BOUND = 1e-10
EPS = 1e-4
"""The `eps` of optimizers, above the rounding of gradients."""
DRAWS = 8
"""Stacks to draw until one can train as one program."""

REFUSALS = (TrainyardError, RuntimeError, TypeError, ValueError, NotImplementedError)
"""Errors at which the probe of a sweep has jobs train one by one."""

Config = dict[str, Any]


class Leave(Hook):
    """Ends the training of a member after a drawn iteration."""

    stackable = True

    def __init__(self, at: int) -> None:
        self._at = [at]

    def stack(self, hooks: Sequence[Hook]) -> None:
        """Take over the iterations of the hooks that the members have alone."""
        self._at = [hook._at[0] for hook in hooks if isinstance(hook, Leave)]

    def keep(self, members: Sequence[int]) -> None:
        self._at = [self._at[member] for member in members]

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        for at, member in zip(self._at * (len(runner.members) // len(self._at)), runner.members, strict=True):
            if runner.iter == at and member.stop_reason is None:
                member.stop("its end was drawn")


def attempt(trial: Trial) -> None:
    """Train a drawn stack, and each of its members alone.

    Raises:
        FaultError: a member's weights or metrics differ from those it has alone, or no drawn stack can train.
    """
    for _ in range(DRAWS):
        configs = drawn(trial.random)
        trial.tell(describe(configs))
        ended = child.run(lambda configs=configs: compare(configs), trial.folder)  # type: ignore[misc]
        if ended.status != 0:
            raise FaultError(f"the comparison ended with status {ended.status}:\n{ended.tail()}")
        if ended.value is None:
            return
        trial.tell(f"(one by one: {ended.value})")
    raise FaultError(f"none of {DRAWS} drawn stacks can train as one program")


def compare(configs: Sequence[Config]) -> str | None:
    """Compare a stack with its members alone; return why they cannot train as one program, None if they do.

    Raises:
        FaultError: they differ.
    """
    warnings.filterwarnings("ignore", "There is a performance drop")
    torch.set_default_dtype(torch.float64)
    try:
        stack = FusedRunner(configs)
        stack.prepare()
    except REFUSALS as error:
        return why(error)
    stack.train()
    for index, config in enumerate(configs):
        alone = Runner.from_cfg(config)
        alone.train()
        member = stack.all_members[index]
        where = f"member {index} in the stack against alone"
        outcome.check_equal(_weights(member.model, config), _weights(alone.model, config), where, BOUND)
        outcome.check_equal([member.iter, member.epoch], [alone.iter, alone.epoch], f"{where}: iterations, epochs")
        outcome.check_equal(_timeless(member.metrics), _timeless(alone.members[0].metrics), where, 10 * BOUND)
    return None


def drawn(random: Random) -> list[Config]:
    """Draw the configs of two to six members, which differ in what may differ in a stack."""
    model, kind = _model(random)
    batch = random.choice((4, 7, 10))
    count = batch * random.randint(3, 6) + random.choice((0, 2, 3))  # no batch of one, which batch norm refuses
    shared: Config = {
        "model": model,
        "data": {"_target_": random_nets.Drawn, "kind": kind, "batch": batch, "count": count},
        "schedule": _schedule(random),
        "metric": {"loss": {"_target_": "trainyard.metrics.CrossEntropy"}},
        "objective": "val/loss",
        "device": "cpu",
        "work_dir": None,
        "accumulate": random.choice((1, 1, 2, 3)),
    }
    if random.random() < 0.5:
        shared["loop"] = {"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": random.randint(1, 5)}
    else:
        iterations = {"max_iters": random.randint(3, 40), "val_interval": random.randint(3, 20)}
        shared["loop"] = {"_target_": "trainyard.runner.IterBasedTrainLoop", **iterations}
    optim, lr = _optimizer(random, exact=_has_no_gradient_of_rounding(model))
    clip = random.choice((None, None, "clip_grad_norm", "clip_grad_value"))
    ema, leaves = random.random() < 0.3, random.random() < 0.4
    own_order = random.random() < 0.7
    configs = []
    for member in range(random.randint(2, 6)):
        hooks: Config = {
            "logger": {"_target_": "trainyard.hooks.Logger", "interval": 5},
            "param_schedule": {"_target_": "trainyard.hooks.ParamSchedule"},
        }
        if ema:
            hooks["ema"] = {"_target_": "trainyard.hooks.EMA", "decay": random.uniform(0.5, 0.99)}
        if leaves:
            hooks["leave"] = {"_target_": Leave, "at": random.randint(1, 30)}
        config = shared | {
            "optim": _member_optimizer(random, optim, lr),
            "hook": hooks,
            "seed": random.randint(0, 5) if own_order else 3,
        }
        if clip is not None:
            config[clip] = random.choice((0.01, 0.3, 10.0))
        configs.append(config | {"name": str(member)})
    return configs


def describe(configs: Sequence[Config]) -> str:
    """Describe the configs of a stack in a line: what they share, and how many they are."""
    first = configs[0]
    own = {key: value for key, value in first["model"].items() if key != "_target_"}
    model = getattr(first["model"]["_target_"], "__name__", first["model"]["_target_"]).rpartition(".")[2]
    scheduler = first["schedule"].get("scheduler") or {}
    parts = [
        f"K={len(configs)}",
        f"{model}{own}",
        first["optim"]["_target_"].rpartition(".")[2],
        scheduler.get("_target_", "constant").rpartition(".")[2],
        f"{first['loop']['_target_'].rpartition('.')[2]}",
        f"accumulate={first['accumulate']}",
        *(key for key in ("clip_grad_norm", "clip_grad_value") if key in first),
        *(key for key in ("ema", "leave") if key in first["hook"]),
    ]
    return " ".join(parts)


def _weights(model: nn.Module, config: Config) -> dict[str, Any]:
    """Return parameters and buffers, but for biases whose gradient is rounding alone, and grows with that of others."""
    left_out = "qkv.bias" if config["model"].get("positions") == "learned" else None
    return {name: each for name, each in model.state_dict().items() if left_out is None or not name.endswith(left_out)}


def _timeless(metrics: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if "time" not in key}


def _model(random: Random) -> tuple[Config, str]:
    """Draw a model and the kind of data that fits it."""
    dropout = random.choice((0.0, 0.2, 0.5))
    zoo = random.choice(("mlp", "cnn", "resnet", "transformer", "net", "net", "net"))
    models = "trainyard.models."
    if zoo == "mlp":
        hidden = [random.randint(2, 12) for _ in range(random.randint(0, 2))]
        batch_norm = random.random() < 0.4
        size = {"in_features": random_nets.FEATURES, "num_classes": random_nets.CLASSES, "hidden": hidden}
        activation = random.choice(("relu", "gelu", "tanh", "silu"))
        own = {"dropout": dropout, "batch_norm": batch_norm, "activation": activation}
        return {"_target_": f"{models}MLP", **size, **own}, "points"
    if zoo == "cnn":
        channels = [random.randint(2, 6) for _ in range(random.randint(1, 2))]
        size = {"in_channels": 1, "num_classes": random_nets.CLASSES, "channels": channels}
        return {"_target_": f"{models}CNN", **size, "dropout": dropout}, "pictures"
    if zoo == "resnet":
        return {
            "_target_": f"{models}ResNet",
            "in_channels": 1,
            "num_classes": random_nets.CLASSES,
            "depth": 8,
            "width": 2,
        }, "pictures"
    if zoo == "transformer":
        size = {
            "vocab_size": random_nets.WORDS,
            "context_length": random_nets.LENGTH,
            "dim": 8,
            "layers": 1,
            "heads": 2,
        }
        positions = random.choice(("rotary", "learned"))
        own = {"dropout": dropout, "positions": positions, "tie_embeddings": random.random() < 0.5}
        return {"_target_": f"{models}Transformer", **size, **own}, "words"
    kind = random.choice(("points", "pictures", "series"))
    blocks = random_nets.drawn_blocks(random, kind, dropout=random.random() < 0.5)
    return {"_target_": random_nets.net, "kind": kind, "blocks": blocks}, kind


def _schedule(random: Random) -> Config:
    names = ("constant", "cosine", "exponential", "multistep", "onecycle", "poly", "step", "warmup_cosine")
    schedule: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "conf/schedule" / f"{random.choice(names)}.yaml"))
    return dict(schedule)


def _has_no_gradient_of_rounding(model: Config) -> bool:
    """Return whether no parameter has a gradient that is zero but for rounding.

    The bias before a batch norm has one, and that of the keys where positions are learned.
    """
    blocks = model.get("blocks", ())
    return not (
        model.get("batch_norm")
        or model.get("positions") == "learned"
        or any(block.startswith("batch_norm") for block in blocks)
    )


def _optimizer(random: Random, *, exact: bool) -> tuple[Config, float]:
    """Draw an optimizer with what the members share, and its usual learning rate.

    Steps of those that divide by the size of a gradient turn the rounding of one that is zero into a step: `eps`
    is above it. Lion, whose steps have the size of a sign, is drawn only where there is no such gradient.
    """
    torchs = "torch.optim."
    options: list[tuple[Config, float]] = [
        ({"_target_": f"{torchs}SGD", "momentum": 0.9, "nesterov": random.random() < 0.5, "fused": True}, 0.03),
        ({"_target_": f"{torchs}SGD", "fused": True}, 0.05),
        ({"_target_": f"{torchs}Adam", "amsgrad": random.random() < 0.3, "fused": True, "eps": EPS}, 3e-3),
        ({"_target_": f"{torchs}AdamW", "amsgrad": random.random() < 0.3, "fused": True, "eps": EPS}, 3e-3),
        ({"_target_": f"{torchs}RMSprop", "momentum": 0.5, "eps": EPS}, 1e-3),
        ({"_target_": f"{torchs}Adagrad", "fused": True, "eps": EPS}, 1e-2),
        ({"_target_": f"{torchs}NAdam", "eps": EPS}, 2e-3),
        ({"_target_": f"{torchs}RAdam", "eps": EPS}, 2e-3),
        ({"_target_": f"{torchs}Adamax", "eps": EPS}, 2e-3),
    ]
    return random.choice([*options, ({"_target_": "trainyard.optim.Lion"}, 3e-4)] if exact else options)


def _member_optimizer(random: Random, optim: Config, lr: float) -> Config:
    own: Config = {
        "_partial_": True,
        "lr": lr * random.choice((0.3, 1.0, 2.0)),
        "weight_decay": random.choice((0.0, 0.01, 0.1)),
    }
    if optim["_target_"].endswith(("Adam", "AdamW", "NAdam", "RAdam", "Adamax")):
        own["betas"] = [random.choice((0.8, 0.9)), random.choice((0.99, 0.999))]
    return optim | own


PART = Part(
    "stacks",
    "the weights, buffers and metrics of each member of a stack equal the results of its single run, to 1e-10 of the "
    "largest value, in float64",
    usual=10,
    attempt=attempt,
)
