"""Trial of a sweep's jobs: what a single run refuses is found before any job starts, in the same words."""

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import nn

from trainyard.command import Application
from trainyard.config.current_job import current_job
from trainyard.config.distinct import DistinctConfigs, TrialResult
from trainyard.config.hydra_versions import VERSION_BASE
from trainyard.config.schema import check_nodes, check_settings
from trainyard.data import ArrayData
from trainyard.errors import TrainyardError
from trainyard.hooks import Hook
from trainyard.metrics import Accuracy
from trainyard.models import MLP, BaseModel
from trainyard.run import trial
from trainyard.run.ranks import spread
from trainyard.runner import Runner
from trainyard.track.sweep_position import Rungs

CONF = Path(__file__).parents[2] / "conf"
BARE = ["work_dir=null", "tracker=none"]
SMALL = ["data=rings", "data.num_samples=60"]
BAD = """
    seed=-1 / seed=1.5 / device=tpu / device=cuda:7 / precision=fp8 / accumulate=0 / accumulate=1.5
    clip_grad_norm=-1 / clip_grad_norm=abc / clip_grad_value=0 / init={Linear:magic} / init={Nothing:zeros}
    freeze=[nothing] / freeze=3 / activation_checkpointing=[nothing] / compile=fastest / capture=maybe
    objective=val/acuracy / objective=train/loss / objective=loss / direction=up / mode=training / mode=val / resume=3
    load_from=/no/such.pt
    model.hidden=[0] / model.hidden=[8,-1] / model.hidden=8 / model.hidden=[a] / model.activation=relo
    model.dropout=1.5 / model.dropout=-0.1 / model.batch_norm=no / model.in_features=7 / model.num_classes=0
    model.num_classes=1 / model._target_=trainyard.models.MLPP / model._target_=torch.nn.Linear
    +model.loss._target_=torch.nn.CrossEntropy / data.batch_size=0 / data.batch_size=2.5 / data.num_samples=0
    data.num_samples=-5 / data.noise=-1 / data.noise=loud / optim.lr=-1 / optim.lr=fast / optim.betas=[0.9]
    optim.betas=[0.9,1.5] / optim.eps=-1 / optim.weight_decay=-0.1 / optim.fused=maybe / optim.amsgrad=yes
    optim.paramwise=3 / optim.paramwise={lr:2} / +optim.momentum=0.9 / optim=sgd optim.momentum=-1
    optim=sgd optim.nesterov=true / optim=rmsprop optim.alpha=-1 / schedule=plateau schedule.patience=-1
    schedule=plateau schedule.factor=2 / schedule=plateau schedule.monitor=val/x
    schedule=plateau schedule.threshold_mode=abss / schedule=cosine schedule.warmup=-1
    schedule=cosine schedule.warmup=1000 / schedule=cosine schedule.scheduler.T_max=0 / schedule=cosine schedule.by=step
    schedule=step schedule.scheduler.step_size=-1 / schedule=multistep schedule.scheduler.milestones=[5,3]
    schedule=onecycle schedule.scheduler.pct_start=2 / schedule=exponential schedule.scheduler.gamma=-1
    loop.max_epochs=0 / loop.max_epochs=x / loop.val_interval=0 / loop.val_begin=0 / loop=iter loop.max_iters=0
    hook.checkpoint.interval=0 / hook.checkpoint.max_keep=-1 / hook.checkpoint.by=step
    hook.checkpoint.save_best={val/x:maximize} / hook.checkpoint.save_best={val/accuracy:most} / hook.logger.interval=0
    hook.logger.window=-1 / hook=early_stop hook.early_stop.patience=-1
    hook=early_stop hook.early_stop.monitor=val/losss / hook=ema hook.ema.decay=2 / +hook.timer.priority=HIGHESTT
    metric.accuracy.topk=[0] / +metric.more._target_=trainyard.metrics.Acuracy / strategy=ddp strategy.devices=9999
    tracker=mlflow tracker.uri=nowhere://x / tracker=mlflow tracker.wait=-1 / env.threads=0 / env.start_method=spoon
"""
GOOD = """
    seed=1 / model=cnn data=digits / model=resnet data=digits / data=text model=transformer metric=language
    experiment=rings_gan / schedule=cosine / schedule=onecycle / schedule=several / optim=lion
    optim=sgd optim.momentum=0.9 / loop=iter loop.max_iters=50 / hook=[ema,early_stop,precise_bn] / hook=[]
    accumulate=4 precision=bf16 / device=auto
"""


def _listed(text: str) -> list[str]:
    return [entry.strip() for line in text.splitlines() for entry in line.split(" / ") if entry.strip()]


@cache
def _composed(*overrides: str) -> DictConfig:
    small = [] if any(entry.startswith(("data=", "experiment=")) for entry in overrides) else SMALL
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        return compose("train", overrides=[*BARE, *small, *overrides], return_hydra_config=True)


def _values(*overrides: str) -> dict[str, Any]:
    cfg = _composed(*overrides)
    with current_job(cfg):
        return check_settings(cfg)


def _tried(*jobs: str) -> list[str | None]:
    return _errors([_values(*job.split()) for job in jobs])


def _errors(jobs: Sequence[dict[str, Any]]) -> list[str | None]:
    configs, which = DistinctConfigs.of(jobs)
    found = trial.try_jobs(configs)
    assert found.left == 0
    return [found.errors[number] for number in which]


def _of_single_run(job: str) -> str | None:
    try:
        values = _values(*job.split())
        check_nodes(values)
        spread(values)
        Runner.from_cfg(values).prepare(values["mode"])
    except TrainyardError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


@pytest.mark.parametrize("job", _listed(BAD))
def test_what_a_single_run_refuses_is_found(job: str) -> None:
    """By the check of the settings, when slots are counted, or by the trial."""
    single = _of_single_run(job)
    assert single is not None
    try:
        Application().slots(_values(*job.split()), room=2)
        (found,) = _tried(job)
    except TrainyardError as error:
        found = str(error)
    assert found is not None
    assert found.startswith(single.rstrip("."))


@pytest.mark.parametrize("small", [trial.SMALL, 0])
@pytest.mark.parametrize("job", _listed(GOOD))
def test_what_a_single_run_takes_passes(job: str, small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With models on the CPU, and with models on the meta device."""
    monkeypatch.setattr(trial, "SMALL", small)
    single: list[str] = []
    monkeypatch.setattr(trial, "_error_of_single_run", lambda values: single.append(values["mode"]))
    assert _tried(job) == [None]
    assert not single, "nothing was in doubt"


@pytest.mark.parametrize("job", ["model.in_features=7", "objective=val/acuracy", "model.hidden=[0]", "optim.lr=-1"])
def test_with_models_on_the_meta_device_the_same_is_found(job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "SMALL", 0)
    (found,) = _tried(job)
    assert str(found).startswith(str(_of_single_run(job)).rstrip("."))


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("val/acuracy", "val/accuracy"),
        ("vall/accuracy", "val/accuracy"),
        ("accuracy", "val/accuracy"),
        ("test/acuracy", "test/accuracy"),
        ("model/paramters", "model/parameters"),
    ],
)
def test_each_objective_of_a_search_is_checked(wrong: str, nearest: str) -> None:
    values = _values() | {trial.METRICS: {"val/loss": "objective", wrong: "hydra.sweeper.constraints"}}
    (found,) = _errors([values])
    assert str(found).startswith(f"hydra.sweeper.constraints: No metric named '{wrong}'. These jobs compute")
    assert str(found).endswith(f"Did you mean '{nearest}'?")


@pytest.mark.parametrize("job", ["", "hook=[default,train_metrics]", "hook=[]"])
def test_objectives_that_jobs_record_pass(job: str) -> None:
    names = ["val/accuracy", "test/loss", "train/loss", "model/parameters", "best/epoch", "train/lr", "norm/grad"]
    assert _errors([_values(*job.split()) | {trial.METRICS: dict.fromkeys(names, "")}]) == [None]


class RealOnly(Accuracy):
    """Rejects zeros, the artificial outputs of a trial."""

    def process(self, batch: Any, outputs: Any) -> None:
        if not outputs.any():
            raise ValueError
        super().process(batch, outputs)


@pytest.mark.parametrize(("name", "passes"), [("val/any", True), ("test/any", True), ("nix", False), ("a/b", False)])
def test_without_the_names_of_the_validation_only_those_are_not_checked(
    name: str, passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "SMALL", 0)
    values = _values(f"+metric.own._target_={__name__}.RealOnly")
    (found,) = _errors([values | {trial.METRICS: {name: "hydra.sweeper.constraints"}}])
    told = (
        f"hydra.sweeper.constraints: No metric named '{name}'. These jobs compute model/parameters and the results of "
        "the validation."
    )
    assert found == (None if passes else told)


class OwnHook(Hook):
    """Records numbers of its own."""


def test_an_own_hook_may_record_any_metric() -> None:
    values = _values(f"+hook.own._target_={__name__}.OwnHook")
    assert _errors([values | {trial.METRICS: {"val/loss": "", "norm": ""}}]) == [None]


def test_the_size_of_jobs_is_that_of_their_checkpoints_and_metrics(tmp_path: Path) -> None:
    plain = "model.hidden=[8] loop.max_epochs=4"
    jobs = [
        "",
        "optim=sgd",
        "hook.checkpoint.max_keep=1",
        "model.batch_norm=true",
        "seed=1",
        "mode=test load_from=x.pt",
    ]
    configs, which = DistinctConfigs.of([_values(*plain.split(), *job.split()) for job in jobs])
    found = trial.try_jobs(configs).sizes
    sizes = [found[number] for number in which]
    weights = 4 * (2 * 8 + 8 + 8 * 2 + 2)
    bytes_of = [None if size is None else size.checkpoints for size in sizes]
    assert bytes_of[:3] == [3 * weights * 4, weights * 4, 3 * weights * 2], "three kept, and the best"
    assert bytes_of[3] > bytes_of[4] == bytes_of[0]
    assert bytes_of[5] is None, "no training"
    assert {size.rows for size in sizes if size is not None} == {0}, "without MLflow"

    values = {**_values(*plain.split()), "tracker": {"_target_": "trainyard.track.MLflowTracker"}}
    (tracked,) = trial.try_jobs(DistinctConfigs.of([values])[0]).sizes
    assert tracked is not None
    assert tracked.rows == 4 + 4 * 3, "one point of the training, and in each epoch three results"

    own = tmp_path / "run"
    Runner.from_cfg(_values(*plain.split()), work_dir=str(own)).train()
    kept = sum(file.stat().st_size for file in {path.resolve() for path in (own / "checkpoints").glob("*.pt")})
    assert kept > bytes_of[0]


def test_a_model_is_built_on_the_meta_device_once_for_all_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    before = MLP.__init__

    def init(self: MLP, *args: Any, **kwargs: Any) -> None:
        before(self, *args, **kwargs)
        built.append(next(self.parameters()).device.type)

    init.__wrapped__ = before  # type: ignore[attr-defined] # its signature is checked
    monkeypatch.setattr(MLP, "__init__", init)
    monkeypatch.setattr(trial, "SMALL", 0)
    jobs = [
        f"optim.lr={rate} model.hidden=[{width}] seed={seed}"
        for width in (4, 8) for rate in (1, 2, -3, -4) for seed in (0, 1)
    ]  # fmt: skip
    assert _tried(*(job for job in jobs if "lr=-" not in job)) == [None] * 8
    assert built == ["meta", "meta"]
    found = _tried(*jobs)
    assert built[2:] == ["meta", "cpu", "meta"], "the CPU has the last word on an optimizer"
    assert [error is not None for error in found] == [False] * 4 + [True] * 4 + [False] * 4 + [True] * 4
    assert "optim.lr: -4 is invalid" in str(found[-1])


class OnlyReal(MLP):
    """A model that the meta device cannot hold."""

    def __init__(self, width: int = 4, fails: bool = False) -> None:
        super().__init__(2, 2, hidden=[width])
        self.rates = [rate.item() for rate in torch.linspace(0, 1, 3)]
        assert not fails, "by the model's own code"


def _with_own_model(**arguments: Any) -> dict[str, Any]:
    return _values() | {"model": {"_target_": OnlyReal, **arguments}}


def test_what_fails_on_the_meta_device_alone_is_no_error() -> None:
    good, failing, wrong = _errors([_with_own_model(), _with_own_model(fails=True), _with_own_model(width=0)])
    assert good is None
    assert str(failing).startswith("AssertionError: by the model's own code (test_trial.py:")
    assert "hidden: [0] is invalid" in str(wrong)


class Late(ArrayData):
    """Points of which the last target is no class."""

    def __init__(self, splits: Sequence[str]) -> None:
        x, y = torch.rand(100, 2), torch.arange(100) % 2
        late = torch.where(torch.arange(100) == 99, 7, y)
        sources = {split: (x, late if split == "train" else y) for split in splits}
        super().__init__(sources, {"in_features": 2, "num_classes": 2}, batch_size=10)


def test_a_late_target_is_found_with_any_kind_of_validation() -> None:
    plain = _values()
    both = plain | {"data": {"_target_": Late, "splits": ["train", "val"]}}
    by_losses: dict[str, Any] = {"metric": {}, "objective": "val/loss"}
    jobs = [both, both | by_losses, plain | {"data": {"_target_": Late, "splits": ["train"]}}]
    for found in _errors(jobs):
        assert str(found).startswith("data: 7 is invalid. Expected targets from 0 to 1 in 'train'")


def test_trying_stops_after_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "LIMIT", -1.0)
    configs, _ = DistinctConfigs.of([_values(f"optim.lr={rate}") for rate in (-1, 1)])
    assert trial.try_jobs(configs) == TrialResult([None, None], left=2, sizes=[None, None])


class FromTheEnvironment(MLP):
    """A model that reads an environment variable."""

    def __init__(self) -> None:
        super().__init__(2, 2, hidden=[int(os.environ["TRIAL_WIDTH"])])


def test_environment_variables_of_a_job() -> None:
    jobs = [
        _values() | {"model": {"_target_": FromTheEnvironment}, trial.ENV: {"TRIAL_WIDTH": width}}
        for width in ("1", "0")
    ]
    good, wrong = _errors(jobs)
    assert good is None
    assert "hidden: [0] is invalid" in str(wrong)
    assert "TRIAL_WIDTH" not in os.environ


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("loop.max_epochs=9", None),
        ("~hook.checkpoint", "hook.checkpoint: None is invalid. Expected a hook that saves checkpoints"),
        ("loop.val_begin=4", "loop.val_begin: 4 is invalid. Expected at most 3, a rung of the sweep."),
        ("loop.val_interval=2", "loop.val_interval: 2 is invalid. Expected an interval that validates after epoch 3"),
        ("loop=iter", None),
    ],
)
def test_the_rungs_of_a_job_are_checked(override: str, told: str | None) -> None:
    alone, found = _errors([_values(override), _values(override) | {trial.RUNGS: Rungs((3,), until=3)}])
    assert alone is None
    assert (found is None) == (told is None), found
    assert (found or "").startswith(told or "")


def test_distinct_configs() -> None:
    configs = [{"seed": seed, "optim": {"lr": rate}, "work_dir": f"{seed}{rate}"} for seed in (0, 1) for rate in (1, 2)]
    distinct, which = DistinctConfigs.of(configs)
    assert which == [0, 1, 0, 1]
    assert distinct.nodes["optim"] == [{"lr": 1}, {"lr": 2}]
    assert distinct.values(1) == {"seed": 0, "optim": {"lr": 2}, "work_dir": "01"}
    one_and_true, _ = DistinctConfigs.of([{"a": 1}, {"a": True}, {"a": 1.0}, {}])
    assert len(one_and_true.jobs) == 4


class Sparse(BaseModel):
    """A table whose gradients are sparse, and a loss that may have lost its graph."""

    def __init__(self, detached: bool = False) -> None:
        super().__init__()
        self.rows = nn.Embedding(5, 2, sparse=True)
        self.detached = detached

    def forward(self, x: Any, y: Any = None, mode: str = "tensor") -> Any:
        out = self.rows(x[:, 0].long().clamp(0, 4))
        if mode != "loss":
            return out
        loss = nn.functional.cross_entropy(out, y)
        return {"loss": loss.detach() if self.detached else loss}


@pytest.mark.parametrize(
    ("overrides", "detached", "told"),
    [
        ("optim=sgd", False, None),
        (
            "optim=sgd clip_grad_norm=1",
            False,
            "clip_grad_norm: 1 is invalid. Expected null, because the gradients are sparse.",
        ),
        ("optim=rmsprop", False, "optim: 'RMSprop' is invalid. Expected an optimizer for sparse gradients"),
        ("optim=sgd", True, "model: the loss does not depend on a trained parameter"),
    ],
)
def test_a_step_is_tried(overrides: str, detached: bool, told: str | None) -> None:
    model = {"_target_": Sparse, "detached": detached}
    (found,) = _errors([_values(*overrides.split()) | {"model": model}])
    assert (found is None) == (told is None), found
    assert told is None or (found or "").startswith(told)
