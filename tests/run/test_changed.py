"""What a clone may have otherwise than its job."""

from __future__ import annotations

from typing import Any

import pytest

from trainyard.errors import TrainyardError
from trainyard.run.changed import changed

JOB: dict[str, Any] = {
    "seed": 0,
    "optim": {"_target_": "torch.optim.Adam", "lr": 0.1, "betas": [0.9, 0.999], "fused": True},
    "data": {"batch_size": 64, "split": {"val": 0.2}},
    "model": {"hidden": [8]},
    "loop": {"max_epochs": 4},
    "work_dir": "s/0",
}


def other(**values: Any) -> dict[str, Any]:
    return (
        JOB
        | {"work_dir": "s/1000000"}
        | {key: JOB.get(key, {}) | own if isinstance(own, dict) else own for key, own in values.items()}
    )


def test_the_checkpoint_has_some_of_what_is_different_too() -> None:
    clone = other(optim={"lr": 0.5, "betas": [0.8, 0.9], "fused": False}, data={"batch_size": 32}, seed=3)
    assert changed(JOB, clone, ended=False) == ["optim.lr", "optim.betas", "data.batch_size"]
    assert changed(JOB, other(loop={"max_epochs": 9}, hook={"ema": {"decay": 0.9}}), ended=True) == []


@pytest.mark.parametrize(
    ("values", "ended", "told"),
    [
        (
            {"model": {"hidden": [16]}},
            False,
            r"model.hidden: \[16\] is invalid. Expected the value of the job .*: only values of .*, env may differ",
        ),
        ({"data": {"split": {"val": 0.5}}}, False, r"data.split.val: 0.5 is invalid"),
        ({"optim": {"_target_": "torch.optim.SGD"}}, False, r"optim._target_: 'torch.optim.SGD' is invalid"),
        ({"freeze": ["net.0"]}, False, r"freeze: \['net.0'\] is invalid"),
        ({"loop": {"max_epochs": 1}}, True, r"would have nothing to train. Increase loop.max_epochs or loop.max_iters"),
        ({"optim": {"lr": 0.5}}, True, r"would have nothing to train. Increase loop.max_epochs or loop.max_iters"),
    ],
)
def test_what_belongs_to_the_beginning_of_a_training_is_refused(values: Any, ended: bool, told: str) -> None:
    with pytest.raises(TrainyardError, match=told):
        changed(JOB, other(**values), ended=ended)
