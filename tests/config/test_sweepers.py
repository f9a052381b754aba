"""Names of the options of sweepers in messages."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf

from trainyard.config.sweepers import OPTIONS

CONF = Path(__file__).parents[2] / "conf/hydra/sweeper"


def test_each_sampler_and_pruner_has_the_name_of_its_option() -> None:
    files = [*CONF.glob("sampler/*.yaml"), *CONF.glob("pruner/*.yaml")]
    found = {str(node._target_): file.stem for file in files for node in [OmegaConf.load(file)]}
    assert found == OPTIONS
