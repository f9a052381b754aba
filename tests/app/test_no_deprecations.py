"""What Hydra is going to change is no user's affair."""

import subprocess
from functools import partial
from typing import Any

# Both settings are read when the interpreter starts.
started = partial(subprocess.run, capture_output=True, text=True, check=False)
STRICT = {"HYDRA_DEPRECATION_WARNINGS_AS_ERRORS": "1", "PYTHONWARNINGS": "error:Implicit conversion:FutureWarning"}


def test_a_run_does_nothing_that_hydra_warns_of(train: Any) -> None:
    result = train("hook=ema", "hydra.run.dir=run", env=STRICT, run=started)
    assert result.returncode == 0, result.stderr
    assert "hydra" not in result.stderr.lower()


def test_a_sweep_neither(train: Any) -> None:
    result = train("-m", "seed=0,1", "hydra.sweep.dir=s", env=STRICT, run=started)
    assert result.returncode == 0, result.stderr
    assert "hydra" not in result.stderr.lower()
