"""Train a model from the configs in `conf/`: `python train.py --help`."""

from pathlib import Path

from trainyard.app import main

if __name__ == "__main__":
    main(config_path=Path(__file__).parent / "conf")
