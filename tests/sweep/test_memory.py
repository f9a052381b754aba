"""The process of a sweep keeps no configs of its jobs: its memory does not grow with their number."""

import os
import sys
from pathlib import Path

import forked
from waiting import LIMIT

APP = """
import gc

import hydra
from omegaconf import DictConfig


@hydra.main(config_path=None, config_name=None, version_base=None)
def main(cfg):
    return float(cfg.x)


if __name__ == "__main__":
    main()
    gc.collect()
    print("configs:", sum(isinstance(each, DictConfig) for each in gc.get_objects()))
"""


def test_configs_of_jobs_are_not_kept(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root / "src")}

    def configs(jobs: int) -> int:
        command = [sys.executable, "app.py", "-m", "hydra/launcher=local", f"+x=range({jobs})"]
        done = forked.run(command, cwd=tmp_path, env=environment, timeout=LIMIT)
        assert done.returncode == 0, done.stderr
        return int(done.stdout.rpartition("configs:")[2])

    assert configs(40) == configs(4)
