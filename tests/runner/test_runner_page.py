"""The loops that docs/runner.md shows."""

from pathlib import Path
from typing import Any

import pytest
import torch

from trainyard.hooks import Checkpoint, Hook
from trainyard.runner import Runner

PAGE = (Path(__file__).parents[2] / "docs/runner.md").read_text()


@pytest.fixture
def shown() -> Any:
    """What the code blocks with a class in them define."""
    names = {"__name__": "mine"}
    for block in PAGE.split("```python\n")[1:]:
        if "\nclass " in block.split("```")[0]:
            exec(compile(block.split("```")[0], "docs/runner.md", "exec"), names)
    return names


def weights(runner: Any) -> Any:
    return torch.cat([parameter.detach().flatten() for parameter in runner.model.parameters()])


def test_the_loop_calls_its_stages_and_goes_on_to_the_bit(shown: Any, parts: Any, tmp_path: Path) -> None:
    class Mixing(Hook):
        def __init__(self, stop_at: Any = None) -> None:
            self.stop_at = stop_at
            self.epochs: list[Any] = []

        def after_mixing(self, runner: Runner, anchor: Any) -> None:
            assert anchor.keys() == dict(runner.model.named_parameters()).keys()
            self.epochs.append(runner.epoch)

        def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
            if runner.iter == self.stop_at:
                runner.interrupt()

    def make(folder: Any, hook: Any, **more: Any) -> Any:
        hooks = {"mixing": hook, "checkpoint": Checkpoint()}
        return Runner(
            **parts | {"loop": shown["Anchored"](3, pull=0.5), "hooks": hooks, "work_dir": tmp_path / folder}, **more
        )

    whole, first, second = Mixing(), Mixing(stop_at=8), Mixing()
    expected = make("whole", whole)
    expected.train()
    make("parts", first).train()
    resumed = make("parts", second, resume=True)
    resumed.train()
    assert (whole.epochs, first.epochs, second.epochs) == ([1, 2, 3], [1], [2, 3])
    assert torch.equal(weights(expected), weights(resumed))
    plain = Runner(**parts | {"hooks": {}})
    plain.train()
    assert not torch.equal(weights(expected), weights(plain))


def test_the_validation(shown: Any, parts: Any) -> None:
    noisy, plain = (Runner(**parts | {"hooks": {}, "val_loop": loop}) for loop in (shown["Noisy"](), None))
    assert noisy.val() != plain.val()
    assert noisy.test() == plain.test()
