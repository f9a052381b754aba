"""Milliseconds to compose a point of a sweep: Hydra's own `load_sweep_config` against `trainyard.sweep.composer`.

The points are a grid over the project's configs: 2 models, 2 optimisers, learning rates and seeds.

    python scripts/bench/compose.py [--points 1000] [--hydra-points 48] [--rounds 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from trainyard.sweep.composer import Composer

CONF = Path(__file__).resolve().parents[2] / "conf"


def grid(size: int) -> list[list[str]]:
    """`size` points with four combinations of group choices; neighbours differ in them."""
    groups = itertools.product(("mlp", "cnn"), ("adam", "sgd"))
    values = itertools.product(range(-(-size // 20)), ("1e-4", "1e-3", "1e-2", "0.1", "1.0"))
    points = itertools.product(values, groups)
    return [
        [f"model={model}", f"optim={optim}", f"optim.lr={lr}", f"seed={seed}"]
        for (seed, lr), (model, optim) in itertools.islice(points, size)
    ]


def timed(compose: Callable[[], list[DictConfig]]) -> tuple[float, list[DictConfig]]:
    """Seconds, and what was composed."""
    begin = perf_counter()
    configs = compose()
    return perf_counter() - begin, configs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--hydra-points", type=int, default=48, help="as many as Hydra composes for its mean")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    points = grid(options.points)
    hydra_points = points[: options.hydra_points]
    seconds: dict[str, list[float]] = {"hydra": [], "ours": []}
    with initialize_config_dir(str(CONF), job_name="train", version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        loader = hydra.config_loader
        master = hydra.compose_config("train", [], RunMode.MULTIRUN, with_log_configuration=False)
        for _ in range(options.rounds):
            took, theirs = timed(lambda: [loader.load_sweep_config(master, point) for point in hydra_points])
            seconds["hydra"].append(took / len(hydra_points))
            took, ours = timed(lambda: Composer(loader, master).compose_all(points))
            seconds["ours"].append(took / len(points))
            equal = [OmegaConf.to_container(cfg) for cfg in theirs] == [
                OmegaConf.to_container(cfg) for cfg in ours[: len(theirs)]
            ]
            assert equal, "the two differ"
            del theirs, ours
    medians = {name: statistics.median(values) * 1e3 for name, values in seconds.items()}
    print(f"{'':34}{'ms/point':>10}{f's for {len(points):,}':>14}  (min to max ms/point, {options.rounds} rounds)")
    for name, label in (("hydra", f"Hydra, mean of {len(hydra_points)}"), ("ours", "trainyard")):
        low, high = min(seconds[name]) * 1e3, max(seconds[name]) * 1e3
        print(f"{label:34}{medians[name]:10.2f}{medians[name] * len(points) / 1e3:14.2f}  ({low:.2f} to {high:.2f})")
    print(f"{'ratio':34}{medians['hydra'] / medians['ours']:10.1f}")
    if options.json:
        options.json.write_text(json.dumps({"points": len(points), "ms_per_point": medians, "seconds": seconds}))


if __name__ == "__main__":
    main()
