"""A whole sweep, end to end: this project's launcher against Hydra's joblib launcher over a script written by hand.

Both run the same points (learning rates x seeds) of the same training on all cores, one thread a job: the digits, an
MLP (64-64-64-10 unless --hidden says otherwise), 20 epochs, Adam; each run in MLflow with its params, its metrics of
every epoch, and a checkpoint of its end. The other side is `sweep_by_hand.py`, in an environment of its own,
`.venv-bench`, which is made where it is missing: it sees the packages of this interpreter, and has
hydra-joblib-launcher from PyPI.

Each sweep has a folder of its own with an empty MLflow database, made before the clock starts. With several rounds the
two sides take turns at being first. Afterwards the runs are counted in MLflow.

    python scripts/bench/sweep.py [--points 32] [--rounds 1] [--hidden 64 64] [--fuse auto] [--only ours|joblib]
                                  [--defaults] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from dataclasses import asdict, dataclass
from pathlib import Path

from mlflow import MlflowClient

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / ".venv-bench"
EXPERIMENT = "bench"
EPOCHS = 20
RATES = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 3e-3, 5e-3, 1e-2)

# What train.py does by default and the other side does not: a checkpoint after every epoch, the best of them kept,
# loaded for the test and logged as an MLflow model, and two points of the learning curve within an epoch.
SAME_WORK = (
    f"hook.checkpoint.interval={EPOCHS}",
    "hook.checkpoint.save_best=false",
    "hook.logger.interval=20",
    "tracker.log_model=false",
    "tracker.log_checkpoints=[last]",
)


@dataclass(frozen=True)
class Measured:
    """One sweep.

    Attributes:
        wall: from the command's start to its end, in seconds.
        cpu: seconds of all its processes together.
        finished: runs that MLflow has as FINISHED, with metrics of every epoch and a checkpoint.
        run: from the start to the end of a run as MLflow has it, in seconds; the median.
        accuracy: the last on the validation images; the median.
    """

    wall: float
    cpu: float
    finished: int
    run: float
    accuracy: float


def points(count: int) -> tuple[str, str]:
    """The learning rates and the seeds of a grid of `count` points, as overrides list them."""
    return ",".join(map(str, RATES)), ",".join(map(str, range(count // len(RATES))))


def ours(options: argparse.Namespace, uri: str) -> list[str]:
    rates, seeds = points(options.points)
    tracking = [f"tracker.uri={uri}", f"tracker.experiment={EXPERIMENT}"]
    model = ["model=mlp", f"model.hidden={options.hidden}", "optim=adam"]
    work = [*model, f"loop.max_epochs={EPOCHS}", "data.batch_size=64"]
    sweep = [f"optim.lr={rates}", f"seed={seeds}", "hydra.sweep.dir=sweep", f"hydra.launcher.fuse={options.fuse}"]
    same = () if options.defaults else SAME_WORK
    return [sys.executable, str(ROOT / "train.py"), "-m", *work, *tracking, *same, *sweep]


def joblib(options: argparse.Namespace, uri: str) -> list[str]:
    rates, seeds = points(options.points)
    tracking = [f"tracking_uri={uri}", f"experiment={EXPERIMENT}"]
    sweep = [f"lr={rates}", f"seed={seeds}", "hydra.sweep.dir=sweep"]
    script = Path(__file__).with_name("sweep_by_hand.py")
    work = [f"epochs={EPOCHS}", "batch_size=64", f"hidden={options.hidden}"]
    return [str(bench_python()), str(script), "-m", *work, *tracking, *sweep]


def bench_python() -> Path:
    """The interpreter of `.venv-bench`, which is made if it is missing or of another interpreter."""
    python = BENCH / "bin" / "python"
    packages = [path for path in sys.path if path.endswith("site-packages")]
    link = next(BENCH.glob("lib/python*/site-packages"), BENCH) / "bench.pth"
    if not link.exists() or link.read_text().split() != packages:
        print(f"Making {BENCH.name}", flush=True)
        venv.create(BENCH, clear=True, with_pip=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*install, "hydra-joblib-launcher", "joblib"], check=True)
        link = next(BENCH.glob("lib/python*/site-packages")) / "bench.pth"
        link.write_text("\n".join(packages) + "\n")  # a folder named in it is searched, its own .pth files are not
    return python


def measure(name: str, options: argparse.Namespace) -> Measured:
    """Runs one sweep in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix=f"trainyard-{name}-") as folder:
        uri = f"sqlite:///{folder}/mlflow.db"
        client = MlflowClient(uri)
        experiment = client.create_experiment(EXPERIMENT, artifact_location=f"{folder}/artifacts")
        command = ours(options, uri) if name == "ours" else joblib(options, uri)
        # The libraries' files are in the system's cache, whoever begins.
        subprocess.run([command[0], "-c", "import torch, mlflow.pytorch, sklearn.datasets, hydra, pandas"], check=True)
        path = {"PYTHONPATH": str(ROOT / "src")} if name == "ours" else {}
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        inherited = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        begin = time.perf_counter()
        done = subprocess.run(
            command, cwd=folder, env=inherited | threads | path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        wall = time.perf_counter() - begin
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            print(done.stdout.decode(errors="replace")[-3000:])
            sys.exit(f"{name}: the sweep ended with status {done.returncode}")
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return look(client, experiment, wall, cpu)


def look(client: MlflowClient, experiment: str, wall: float, cpu: float) -> Measured:
    """What MLflow has of a sweep."""
    found = client.search_runs([experiment], "attributes.status = 'FINISHED'", max_results=10_000)
    runs = [run for run in found if run.data.tags.get("kind") != "sweep"]
    whole = [
        run
        for run in runs
        if len(client.get_metric_history(run.info.run_id, "val/loss")) == EPOCHS
        and len(client.get_metric_history(run.info.run_id, "train/loss")) >= EPOCHS
        and client.list_artifacts(run.info.run_id, "checkpoints")
        and run.data.params
    ]
    return Measured(
        wall,
        cpu,
        len(whole),
        statistics.median((run.info.end_time - run.info.start_time) / 1e3 for run in whole),
        statistics.median(run.data.metrics["val/accuracy"] for run in whole),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=32, help=f"a multiple of {len(RATES)}, e.g. 32 or 256")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--hidden", type=int, nargs="*", default=[64, 64], help="the widths of the hidden layers")
    parser.add_argument("--fuse", default="auto", help="hydra.launcher.fuse: auto, off or a width")
    parser.add_argument("--only", choices=("ours", "joblib"), help="run one side only")
    parser.add_argument("--defaults", action="store_true", help="all that train.py does, not only the same work")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    if options.points < 1 or options.points % len(RATES):
        parser.error(f"--points {options.points}: a multiple of {len(RATES)}, please")
    sides = [options.only] if options.only else ["ours", "joblib"]
    if "joblib" in sides:
        bench_python()

    measured: dict[str, list[Measured]] = {name: [] for name in sides}
    print(f"{'':8}{'wall s':>9}{'s/job':>8}{'CPU s':>8}{'run s':>8}{'finished':>12}{'accuracy':>10}", flush=True)
    for number in range(options.rounds):
        for name in sides if number % 2 == 0 else reversed(sides):
            one = measure(name, options)
            measured[name].append(one)
            finished = f"{one.finished}/{options.points}"
            each = one.wall / options.points
            print(
                f"{name:8}{one.wall:9.1f}{each:8.3f}{one.cpu:8.1f}{one.run:8.2f}{finished:>12}{one.accuracy:10.4f}",
                flush=True,
            )

    figures: dict[str, object] = {"points": options.points, "cores": len(os.sched_getaffinity(0))}
    figures |= {name: [asdict(one) for one in those] for name, those in measured.items()}
    if not options.only:
        for what in ("wall", "cpu"):
            pairs = zip(measured["ours"], measured["joblib"], strict=True)
            ratios = [getattr(own, what) / getattr(other, what) for own, other in pairs]
            figures[f"{what}_ratio"] = ratios
            spread = f"({min(ratios):.3f} to {max(ratios):.3f}, {len(ratios)} rounds)"
            print(f"{what} ours / joblib  {statistics.median(ratios):.3f}  {spread}")
    if options.json:
        options.json.write_text(json.dumps(figures))
    if any(one.finished != options.points for those in measured.values() for one in those):
        sys.exit("Not every run finished.")


if __name__ == "__main__":
    main()
