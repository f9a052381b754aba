"""Training as a module: `python -m trainyard.train model=cnn`, which is `trainyard train model=cnn`.

The configs are those in the folder `conf` of the current folder, where that has a `train.yaml`, else Trainyard's own.
"""

from __future__ import annotations

from pathlib import Path

from trainyard.app import main


def config_folder() -> Path:
    """Return the folder of the configs: `conf` here, the package's, or that of the repository that it lies in."""
    package = Path(__file__).parent
    candidates = (Path("conf"), package / "conf", package.parents[1] / "conf")
    return next(folder for folder in candidates if (folder / "train.yaml").is_file())


if __name__ == "__main__":
    main(config_path=config_folder())
