"""Training as a module: `python -m trainyard.train model=cnn`, which is `trainyard train model=cnn`.

The configs come from the folder `conf` of the current folder if it contains a `train.yaml`, otherwise from Trainyard.
"""

from __future__ import annotations

import sys
from pathlib import Path

from trainyard.app import main
from trainyard.application import MULTIRUN


def config_folder() -> Path:
    """Return the folder of the configs: `conf` in the current folder, or Trainyard's own.

    If `conf` contains configs but no `train.yaml`, and no flag selects a folder, a message says that it is not used.
    """
    here = Path("conf")
    if (here / "train.yaml").is_file():
        return here
    flags = [argument for argument in sys.argv[1:] if argument.startswith("-") and argument not in MULTIRUN]
    if not flags and any(here.rglob("*.yaml")):
        own = sorted(file.stem for file in here.glob("*.yaml"))
        then = (
            f"To use conf/{own[0]}.yaml, pass --config-path conf --config-name {own[0]}."
            if own
            else "To add the options in conf, use --config-dir conf."
        )
        print(
            "The folder conf is not used, because it has no train.yaml. The configs are those of Trainyard. " + then,
            file=sys.stderr,
        )
    return own_configs()


def own_configs() -> Path:
    """Return the folder of Trainyard's own configs, which is in the package, or in the repository that contains the
    package."""
    package = Path(__file__).parent
    return next(folder for folder in (package / "conf", package.parents[1] / "conf") if folder.is_dir())


if __name__ == "__main__":
    main(config_path=config_folder())
