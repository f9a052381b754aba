"""The process of a sweep keeps no configs of its jobs: its memory does not grow with their number."""

import os
import sys
from pathlib import Path

import forked
from waiting import LIMIT

APP = """
import gc

import hydra
from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class Count(Callback):
    def on_multirun_end(self, config, **kwargs):
        gc.collect()
        print("configs:", sum(isinstance(each, DictConfig) for each in gc.get_objects()))


@hydra.main(config_path=None, config_name=None, version_base=None)
def main(cfg):
    return float(cfg.x)


if __name__ == "__main__":
    main()
"""


def test_configs_of_jobs_are_not_kept(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root / 'src'}{os.pathsep}{tmp_path}"}

    def configs(jobs: int) -> int:
        overrides = ["hydra/launcher=local", "+hydra.callbacks.count._target_=app.Count", f"+x=range({jobs})"]
        done = forked.run([sys.executable, "app.py", "-m", *overrides], cwd=tmp_path, env=environment, timeout=LIMIT)
        assert done.returncode == 0, done.stderr
        return int(done.stdout.rpartition("configs:")[2].split()[0])

    assert configs(12) == configs(3) > 0
