"""Every option of every config group trains."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

CONF = Path(__file__).parents[2] / "conf"
RINGS = ["data=rings", "data.num_samples=200", "loop.max_epochs=2", "tracker=none", "hydra.run.dir=run"]
DIGITS = ["loop.max_epochs=2", "tracker=none", "hydra.run.dir=run"]
SMALL = {
    "mlp": ["model.hidden=[8]"],
    "cnn": ["data=digits", "model.channels=[4,4]"],
    "resnet": ["data=digits", "model.depth=8", "model.width=4"],
    "timm": ["data=digits", "model.name=resnet10t"],
    "torchvision": ["data=digits", "model.name=mobilenet_v3_small"],
    "transformers": [
        *("data=text", "data.context_length=16", "model.task=causal_lm", "model.config.model_type=gpt2"),
        *("+model.config={n_embd: 8, n_head: 2, n_layer: 1, bos_token_id: 0, eos_token_id: 0}",),
    ],
    "transformer": ["data=text", "model.dim=8", "model.heads=2", "model.layers=1", "data.context_length=16"],
}

LIBRARIES = ("timm", "torchvision", "transformers")


def _options(group: Any) -> Any:
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


@pytest.mark.parametrize("option", sorted({*_options("optim")} - {"model"}))  # tests/models/test_lightning.py
def test_optimizers(command: Any, option: Any) -> None:
    assert command(f"optim={option}", quick=[*RINGS, *SMALL["mlp"]]) == (0, "")


@pytest.mark.parametrize("by", ["epoch", "iter"])
@pytest.mark.parametrize("option", _options("schedule"))
def test_schedules_by_epoch_and_by_iteration(command: Any, option: Any, by: str) -> None:
    unit = [] if option in ("plateau", "several") else [f"schedule.by={by}"]
    status, message = command(f"schedule={option}", *unit, "loop.max_epochs=6", quick=[*RINGS, *SMALL["mlp"]])
    assert status == 0, message


@pytest.mark.parametrize("option", _options("schedule"))
def test_schedules_in_an_iteration_loop(command: Any, option: Any) -> None:
    loop = ["loop=iter", "loop.max_iters=12", "loop.val_interval=6"]
    quick = ["data=rings", "data.num_samples=200", "tracker=none", "hydra.run.dir=run", *SMALL["mlp"]]
    status, message = command(f"schedule={option}", *loop, quick=quick)
    assert status == 0, message


@pytest.mark.parametrize("option", [name for name in _options("hook") if name != "progress"])
def test_hooks(command: Any, option: Any) -> None:
    data = DIGITS if option == "test_time_augmentation" else RINGS  # flips are for pictures
    needed = ["freeze=[net.1]", "hook.unfreeze.at={1: net.1}"] if option == "unfreeze" else []
    assert command(f"hook={option}", *needed, quick=[*data, *SMALL["mlp"]]) == (0, "")


@pytest.mark.parametrize("option", sorted(SMALL))
def test_models(command: Any, option: Any) -> None:
    if option in LIBRARIES and find_spec(option) is None:
        pytest.skip(f"{option} is not installed")
    quick = ["loop=iter", "loop.max_iters=3", "tracker=none", "hydra.run.dir=run"]
    status, message = command(f"model={option}", *SMALL[option], quick=quick)
    assert status == 0, message


def test_every_model_has_a_small_version_here() -> None:
    assert _options("model") == sorted({*SMALL, "lightning"})  # tests/models/test_lightning.py


@pytest.mark.parametrize("option", _options("experiment"))
def test_experiments(command: Any, option: Any) -> None:
    """The presets as they are, but for three iterations."""
    small = {"text_transformer": "transformer", "rings_gan": "mlp", "beginner": "mlp"}.get(option, "cnn")
    if option == "cartpole_dqn":
        pytest.importorskip("gymnasium")
        small_run = ["loop.max_iters=3", "loop.episodes=1", "loop.warm_up=5", "tracker=none", "hydra.run.dir=run"]
        assert command(f"experiment={option}", quick=small_run) == (0, "")
        return
    loop = ["loop=iter", "loop.max_iters=3"] if "text" in option else ["loop.max_epochs=2"]
    quick = [f"experiment={option}", "tracker=none", "hydra.run.dir=run"]
    status, message = command(*loop, *[entry for entry in SMALL[small] if not entry.startswith("data=")], quick=quick)
    assert status == 0, message


def test_every_option_begins_with_a_comment_that_says_what_it_is() -> None:
    for file in CONF.rglob("*.yaml"):
        first, *rest = file.read_text().splitlines()
        comment = rest[0] if first.startswith("# @package") else first
        assert comment.startswith("# "), file
        assert len(comment) > 20, file


def test_a_value_is_removed_and_another_added(command: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert (
        command("~hook.progress", "+model.loss._target_=torch.nn.CrossEntropyLoss", "+model.loss.label_smoothing=0.1")[
            0
        ]
        == 0
    )
