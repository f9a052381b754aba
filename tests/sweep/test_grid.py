"""Grid of a sweep, above all with several overrides of one key."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser

from trainyard.config.distinct import JobSize
from trainyard.config.hydra_versions import VERSION_BASE
from trainyard.errors import ConfigError
from trainyard.sweep.entry import Entry
from trainyard.sweep.executor.slots import Slot
from trainyard.sweep.grid import combinations
from trainyard.sweep.plan import Job, SweepPlan, amount

CONF = Path(__file__).parents[2] / "conf"


def _jobs(*command: str) -> list[list[str]]:
    overrides = OverridesParser.create().parse_overrides(list(command))
    return combinations(overrides, lambda key: key in ("model", "optim"))


def test_every_combination_in_order() -> None:
    assert _jobs("a=1,2", "b=x", "+c=range(0,2)") == [
        ["a=1", "b=x", "+c=0"], ["a=1", "b=x", "+c=1"], ["a=2", "b=x", "+c=0"], ["a=2", "b=x", "+c=1"],
    ]  # fmt: skip
    assert _jobs() == [[]]


def test_a_pattern_that_fits_no_option() -> None:
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        loader = GlobalHydra.instance().config_loader()
        overrides = OverridesParser.create(config_loader=loader).parse_overrides(["optim=glob(adm*)", "seed=0,1"])
        with pytest.raises(
            ConfigError, match=r"optim: 'glob\(adm\*\)' is invalid. Expected a pattern that matches an option: adag"
        ):
            combinations(overrides, lambda key: key == "optim")
        overrides = OverridesParser.create(config_loader=loader).parse_overrides(["optim.lr=glob(*)"])
        with pytest.raises(ConfigError, match=r"Expected values: .* A pattern can only match the options of a group\."):
            combinations(overrides, lambda key: key == "optim")


def test_mappings_of_one_key_are_merged() -> None:
    assert _jobs("loop={a:1},{a:2}", "loop={b:3},{b:4}") == [
        ["loop={a:1}", "loop={b:3}"], ["loop={a:1}", "loop={b:4}"],
        ["loop={a:2}", "loop={b:3}"], ["loop={a:2}", "loop={b:4}"],
    ]  # fmt: skip
    assert _jobs("loop={a:1}", "loop={b:3}") == [["loop={a:1}", "loop={b:3}"]], "without a sweep, too"
    assert _jobs("model=mlp,cnn", "model={dropout:0.1}") == [
        ["model=mlp", "model={dropout:0.1}"], ["model=cnn", "model={dropout:0.1}"],
    ]  # fmt: skip
    assert _jobs("model={dropout:0.1}", "model=cnn") == [["model={dropout:0.1}", "model=cnn"]]


def test_of_other_values_the_last_counts() -> None:
    assert _jobs("seed=0,1", "seed=2,3") == [["seed=2"], ["seed=3"]]
    assert _jobs("seed=0,1", "optim.lr=1", "seed=2") == [["optim.lr=1", "seed=2"]]
    assert _jobs("model=mlp,cnn", "model=resnet") == [["model=resnet"]]
    assert _jobs("x={a:1}", "x=null") == [["x=null"]], "which replaces a mapping"


def test_what_is_no_list_is_refused() -> None:
    with pytest.raises(ConfigError, match="use hydra/sweeper=search"):
        _jobs("a=interval(0,1)")


@pytest.mark.parametrize(
    "command",
    [
        ["loop={max_epochs:3}", "loop={val_interval:2}"],
        ["optim.lr=5", "optim={lr:0.5}", "optim={eps:1}", "optim.lr=7"],
        ["optim={lr:0.5}", "optim=sgd"],
        ["model=mlp", "model=cnn", "model={dropout:0.25}", "seed=1", "seed=2"],
        ["optim={betas:[0.5,0.6]}", "optim={betas:[0.7,0.8]}", "optim.eps=1", "optim.eps=2"],
    ],
)
def test_a_job_has_the_config_of_a_single_run(command: list[str]) -> None:
    (job,) = _jobs(*command)
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        assert compose("train", overrides=[*job, "work_dir=null"]) == compose(
            "train", overrides=[*command, "work_dir=null"]
        )


def test_the_name_of_a_job_tells_all_its_mappings() -> None:
    config: Any = None
    job = Job(0, ("model=cnn", "loop={a:1}", "+loop={b:2}", "model={dropout:0.1}", "seed=1", "~x"), config, Path())
    assert job.choices == {"model": "cnn {dropout:0.1}", "loop": "{a:1} {b:2}", "seed": "1", "~x": "removed"}


def test_the_plan_names_the_devices_of_slots() -> None:
    config: Any = None
    plan = SweepPlan([Job(0, (), config, Path())], {0: Entry([])}, [Slot(0, "cuda:0", None, 4)], [], Path("s"))
    assert str(plan).splitlines()[0] == "1 job; 1 to run on 1 slot: 1 on cuda:0 (4 threads each)."
    several = replace(plan, slots=[Slot(index, "cuda:0", None, 4) for index in range(8)], on_agents=True)
    assert "on 8 slots: 8 on GPUs of agents (4 threads each)." in str(several), "each agent counts its GPUs from 0"


def test_the_plan_estimates_what_is_left() -> None:
    config: Any = None
    jobs = [Job(num, (f"seed={num}",), config, Path()) for num in range(10)]
    entries = {num: Entry([f"seed={num}"], state="done", seconds=600.0) if num < 2 else Entry([]) for num in range(10)}
    sizes = {num: JobSize(50_000_000, 1000) for num in range(6)}
    slots = [Slot(index, "cpu", 1) for index in range(2)]
    plan = SweepPlan(jobs, entries, slots, ["seed"], Path("s"), sizes=sizes)
    told = "About 40 min 00 s, estimated from 2 finished jobs; 400 MB of checkpoints; 8,000 rows of metrics in MLflow."
    assert str(plan).splitlines()[2] == told
    entries |= {num: Entry([]) for num in range(2)}
    plan = replace(plan, entries=entries)
    told = (
        "500 MB of checkpoints; 10,000 rows of metrics in MLflow. The time is unknown until the first job has finished."
    )
    assert str(plan).splitlines()[2] == f"About {told}"
    measured = replace(plan, seconds=dict.fromkeys(range(10), 12.0))
    assert "About 1 min 00 s of training (measured, without validation); 500 MB" in str(measured)
    assert "no time" not in str(measured)
    assert "About" not in str(replace(plan, sizes={}))
    assert [amount(size) for size in (5, 5e3, 12_345_678, 3.4e9, 2e12)] == ["5 B", "5 kB", "12.3 MB", "3.4 GB", "2 TB"]
