"""What Hydra is going to change is no user's affair."""

from typing import Any

STRICT = {"HYDRA_DEPRECATION_WARNINGS_AS_ERRORS": "1", "PYTHONWARNINGS": "error:Implicit conversion:FutureWarning"}


def test_a_run_does_nothing_that_hydra_warns_of(train: Any) -> None:
    result = train("hook=ema", "hydra.run.dir=run", env=STRICT)
    assert result.returncode == 0, result.stderr
    assert "hydra" not in result.stderr.lower()


def test_a_sweep_neither(train: Any) -> None:
    result = train("-m", "seed=0,1", "hydra.sweep.dir=s", env=STRICT)
    assert result.returncode == 0, result.stderr
    assert "hydra" not in result.stderr.lower()
