"""Training as a module: `python -m trainyard.train model=cnn`, which is `trainyard train model=cnn`.

The configs come from the folder `conf` of the current folder if it contains a `train.yaml`, otherwise from Trainyard.
"""

from __future__ import annotations

from pathlib import Path

from trainyard.app import main


def config_folder() -> Path:
    """Return the folder of the configs: `conf` in the current folder, or Trainyard's own."""
    here = Path("conf")
    return here if (here / "train.yaml").is_file() else own_configs()


def own_configs() -> Path:
    """Return the folder of Trainyard's own configs, which is in the package, or in the repository that contains the
    package."""
    package = Path(__file__).parent
    return next(folder for folder in (package / "conf", package.parents[1] / "conf") if folder.is_dir())


if __name__ == "__main__":
    main(config_path=config_folder())
