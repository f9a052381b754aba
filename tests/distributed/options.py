"""The options of the strategies, each tried by two ranks; what test_options.py starts and looks at.

python options.py <folder>
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import TensorDataset
from trainings import (  # type: ignore[import-not-found]
    ADAM,
    BATCH,
    EMA,
    MLP,
    SAMPLES,
    Blobs,
    config,
    loop,
    options,
    state,
)

from trainyard.data import EpochBatchSampler, Loader
from trainyard.data.dataset_loader import dataset_loader
from trainyard.data.tensor_loader import TensorLoader
from trainyard.distributed.shares import class_of, has_share, local
from trainyard.errors import ConfigError
from trainyard.hooks import Hook
from trainyard.models import BaseModel
from trainyard.runner import Runner

CASE = {"model": MLP, "optim": ADAM, "clip_grad_norm": 0.5, "loop": loop(8)}


def run(strategy: str, settings: dict[str, Any] | None = None, **more: Any) -> Runner:
    case = CASE | {key: more.pop(key) for key in ("model", "optim") if key in more}
    runner = Runner.from_cfg(config(case, None, options(strategy) | (settings or {}), **more))
    runner.train()
    return runner


def refused(act: Callable[[], Any]) -> str:
    try:
        act()
    except ConfigError as error:
        return str(error)
    return "nothing was refused"


class Idle(BaseModel):
    """Half of it takes no part in the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = torch.nn.Linear(16, 4), torch.nn.Linear(16, 4)

    def forward(self, x: Any, y: Any = None, mode: str = "tensor") -> Any:
        output = self.used(x)
        return {"loss": torch.nn.functional.cross_entropy(output, y)} if mode == "loss" else output


class Normed(BaseModel):
    """With a BatchNorm, of whose rows each rank sees its own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 4))

    def forward(self, x: Any, y: Any = None, mode: str = "tensor") -> Any:
        output = self.net(x)
        return {"loss": torch.nn.functional.cross_entropy(output, y)} if mode == "loss" else output


class Spoilt(Blobs):
    """One sample is no number: it comes to one rank."""

    def loader(self, split: str, *, seed: int, device: torch.device) -> TensorLoader:
        if split == "train":
            self.x = self.x.clone()  # type: ignore[has-type]
            self.x[7] = torch.nan
        return super().loader(split, seed=seed, device=device)


class Worked(Blobs):
    """Read by a worker that persists."""

    def loader(self, split: str, *, seed: int, device: torch.device) -> Loader:
        sampler = EpochBatchSampler(SAMPLES, BATCH, shuffle=split == "train", seed=seed)
        return dataset_loader(TensorDataset(self.x, self.y), sampler, 1, device)


class Sums(Hook):
    """How often gradients were averaged."""

    def __init__(self) -> None:
        self.count = 0

    def before_train(self, runner: Runner) -> None:
        assert runner.step is not None  # it makes what communicates
        runner.strategy._ddp.register_comm_hook(None, hook_of(self))  # type: ignore[attr-defined]


def hook_of(sums: Sums) -> Any:
    def average(_: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:  # type: ignore[name-defined]
        sums.count += 1
        work = dist.all_reduce(bucket.buffer().div_(2), async_op=True)
        return work.get_future().then(lambda future: future.value()[0])

    # torch reads the annotations themselves, not their names
    average.__annotations__ = {"bucket": dist.GradBucket, "return": torch.futures.Future[torch.Tensor]}  # type: ignore[attr-defined]
    return average


class OnlyMain(Hook):
    """Says that it ran."""

    ranks = "main"

    def __init__(self) -> None:
        OnlyMain.ran = False  # type: ignore[attr-defined]

    def before_train(self, runner: Runner) -> None:
        OnlyMain.ran = True  # type: ignore[attr-defined]


OnlyMain.ran = False  # type: ignore[attr-defined]


def unused() -> Any:
    return state(run("ddp", {"find_unused_parameters": True}, model={"_target_": Idle}, loop=loop(15)))


def static_graph() -> Any:
    return state(run("ddp", {"static_graph": True, "gradient_as_bucket_view": False}))


def sums() -> Any:
    hook = Sums()
    run("ddp", hook={"sums": hook}, accumulate=3)
    return hook.count


def only_main() -> Any:
    run("ddp", hook={"only": {"_target_": OnlyMain}})
    return OnlyMain.ran  # type: ignore[attr-defined]


def spoilt() -> Any:
    runner = run("ddp", data={"_target_": Spoilt})
    return runner.iter, runner.members[0].stop_reason


def spoilt_and_skipped(strategy: str) -> Any:
    guard = {"nan_guard": {"_target_": "trainyard.hooks.NaNGuard", "action": "skip"}}
    runner = run(strategy, data={"_target_": Spoilt}, hook=guard)
    finite = all(bool(local(value).isfinite().all()) for value in runner.model.parameters())
    return runner.iter, finite, runner.dispatch.hooks["nan_guard"].state_dict()["skipped"]


def batch_norm(precise: bool) -> Any:
    hook = {"precise_bn": {"_target_": "trainyard.hooks.PreciseBN"}} if precise else {}
    runner = run("ddp", model={"_target_": Normed}, hook=hook)
    return dict(runner.members[0].metrics), runner.model.net[1].running_mean.clone()


def precise_within_an_epoch(precise: bool) -> Any:
    """In an iteration loop, whose last batch of an epoch is of 3 samples on one rank and of 2 on the other."""
    hook = {"precise_bn": {"_target_": "trainyard.hooks.PreciseBN"}} if precise else {}
    loop = {"_target_": "trainyard.runner.IterBasedTrainLoop", "max_iters": 16, "val_interval": 5}
    runner = run("ddp", model={"_target_": Normed}, data={"_target_": Worked}, hook=hook, loop=loop)
    return {name: value.clone() for name, value in runner.model.state_dict().items()}


def train_metrics(strategy: str, batches: int | None) -> Any:
    """On more batches of one rank than of the other."""
    hook = {"train_metrics": {"_target_": "trainyard.hooks.TrainMetrics", "batches": batches}}
    return dict(run(strategy, hook=hook, loop=loop(4)).members[0].metrics)


def frozen(strategy: str) -> Any:
    return state(run(strategy, freeze=["net.1"]))


def activation_checkpointing() -> Any:
    return state(run("fsdp", activation_checkpointing=["Linear"]))


def by_size() -> Any:
    runner = run("fsdp", {"wrap": 100, "reshard_after_forward": False})
    return state(runner), sorted(
        name for name, module in runner.model.named_modules() if "FSDP" in type(module).__name__
    )


def class_names() -> Any:
    """The class that runtime_info reports, those of all modules, and the type of the model."""
    runner = run("fsdp", hook={"runtime_info": {"_target_": "trainyard.hooks.RuntimeInfo"}})
    hook: Any = runner.dispatch.hooks["runtime_info"]
    return (
        hook._tags["model"],
        [class_of(module).__name__ for module in runner.model.modules()],
        type(runner.model).__name__,
    )


def mixed_precision() -> Any:
    runner = run("fsdp", {"mixed_precision": {"param_dtype": "bf16", "reduce_dtype": "fp32"}})
    dtypes = sorted({str(value.dtype) for value in runner.model.parameters()})
    return state(runner), dtypes, all(has_share(value) for value in runner.model.parameters())


def averaged_from_the_start() -> Any:
    return state(run("fsdp", {"wrap": None}, hook={"ema": EMA | {"evaluate": "both", "kind": "swa"}}))


def norms() -> Any:
    found = {}
    for strategy in ("ddp", "fsdp"):
        runner = run(strategy, hook={"norms": {"_target_": "trainyard.hooks.Norms", "interval": 5}})
        found[strategy] = {key: value for key, value in runner.members[0].metrics.items() if key.startswith("norm/")}
    return found


def errors() -> Any:
    gan = {"model": {"_target_": "trainyard.models.gan.GAN", "in_features": 16, "num_classes": 4}}
    several = {"_target_": "torch.optim.Adam", "_partial_": True}
    small = {"_target_": "trainyard.data.Rings", "batch_size": 1}
    return {
        "class": refused(lambda: run("fsdp", {"wrap": ["Linaer"]})),
        "size": refused(lambda: run("fsdp", {"wrap": 10**9})),
        "cpu_offload": refused(lambda: run("fsdp", {"cpu_offload": True})),
        "mixed_precision": refused(lambda: run("fsdp", {"mixed_precision": "bf61"})),
        "sync_batchnorm": refused(lambda: run("ddp", {"sync_batchnorm": True})),
        "bf16_compress": refused(lambda: run("ddp", {"bf16_compress": True})),
        "batch_size": refused(lambda: run("ddp", data=small, model=MLP | {"in_features": 2, "num_classes": 2})),
        "several": refused(lambda: run("ddp", **gan, optim={"generator": several, "discriminator": several})),
        "one": refused(lambda: run("ddp", hook={"lr_finder": {"_target_": "trainyard.hooks.LRFinder"}})),
        "devices": refused(lambda: run("ddp", {"devices": 0})),
        "launcher": refused(lambda: run("ddp", {"launcher": "slrum"})),
    }


CASES: dict[str, Callable[[], Any]] = {
    "errors": errors,
    "unused": unused,
    "static_graph": static_graph,
    "sums": sums,
    "only_main": only_main,
    "spoilt": spoilt,
    "skipped_ddp": lambda: spoilt_and_skipped("ddp"),
    "skipped_fsdp": lambda: spoilt_and_skipped("fsdp"),
    "batch_norm": lambda: batch_norm(precise=False),
    "precise_bn": lambda: batch_norm(precise=True),
    "within": lambda: precise_within_an_epoch(precise=False),
    "precise_within": lambda: precise_within_an_epoch(precise=True),
    **{
        f"train_metrics_{kind}_{batches}": partial(train_metrics, kind, batches)
        for kind in ("ddp", "fsdp")
        for batches in (None, 1, 3)
    },
    "frozen_ddp": lambda: frozen("ddp"),
    "frozen_fsdp": lambda: frozen("fsdp"),
    "activation_checkpointing": activation_checkpointing,
    "by_size": by_size,
    "class_names": class_names,
    "mixed_precision": mixed_precision,
    "averaged_from_the_start": averaged_from_the_start,
    "norms": norms,
}


def main(folder: Path) -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    found = {}
    for name, case in CASES.items():
        print(name, flush=True)
        found[name] = case()
    torch.save(found, folder / f"rank{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
