"""Cost of the shipper: CPU and wall time per run, for many runs that have ended and for many active runs.

    python scripts/bench/shipping.py [--runs 256] [--interval 10] [--log-model] [--live SECONDS] [--profile FILE]

A real run (digits data, MLP, 20 epochs) is copied many times. Each copy has a separate ID, name and seed, and the
params of a job of a sweep; its parent is the run of a sweep. One shipper uploads all copies to an empty SQLite
database, as at the end of a sweep. The time to start and to upload the run of the sweep is measured first and
subtracted.

With `--live`, one process writes to all journals while the shipper runs, and the CPU time of the shipper is measured
before any run ends. `--profile` uploads in this process and shows which functions take the time.
"""

from __future__ import annotations

import argparse
import cProfile
import dataclasses
import json
import os
import pstats
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mlflow import MlflowClient

from trainyard.track import Journal, MLflowTracker, RunInfo
from trainyard.track.shipped import FILE as SHIPPED
from trainyard.track.shipped import Shipped
from trainyard.track.shipper.__main__ import configure

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENT = "bench"
EPOCHS = 20
HERTZ = os.sysconf("SC_CLK_TCK")


def train(folder: Path, interval: int, log_model: bool) -> Path:
    """Return the directory of a real run, shipped to a database of its own."""
    command = [sys.executable, str(ROOT / "train.py"), "model=mlp", "data=digits", f"loop.max_epochs={EPOCHS}"]
    command += ["hydra.run.dir=run", f"hook.logger.interval={interval}", f"tracker.log_model={str(log_model).lower()}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    return folder / "run"


def copies(original: Path, folder: Path, runs: int, uri: str) -> list[Path]:
    """Copy the job `runs` times, as unshipped jobs of a sweep; the first directory is the sweep's."""
    parent = RunInfo("sweep", params={"varying": "seed"}, experiment=EXPERIMENT, uri=uri)
    info = RunInfo.read(original)
    sweep = folder / "runs"
    sweep.mkdir()
    parent.write(sweep)
    with Journal(sweep) as journal:
        journal.status("RUNNING")
        journal.status("FINISHED")
    work_dirs = [sweep]
    choices = {key: value for key, value in info.params.items() if (ROOT / "conf" / key).is_dir()}
    for number in range(runs):
        work_dir = sweep / str(number)
        left = shutil.ignore_patterns(SHIPPED, ".shipper.lock")
        shutil.copytree(original, work_dir, ignore=left, copy_function=os.link)
        (work_dir / "run.json").unlink()
        fresh = RunInfo(f"seed={number}").id
        params = choices | {"seed": str(number)}
        own = {"id": fresh, "name": f"seed={number}", "params": params, "parent": parent.id, "uri": uri}
        dataclasses.replace(info, experiment=EXPERIMENT, **own).write(work_dir)  # type: ignore[arg-type]
        work_dirs.append(work_dir)
    return work_dirs


def new_store(folder: Path) -> str:
    uri = f"sqlite:///{folder}/mlflow.db"
    MlflowClient(uri).create_experiment(EXPERIMENT, artifact_location=f"{folder}/artifacts")
    return uri


def ship(work_dirs: list[Path], uri: str) -> tuple[float, float]:
    """Ship these runs, and return the wall and CPU seconds of the shipper's whole life."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.perf_counter()
    tracker = MLflowTracker(uri=uri, experiment=EXPERIMENT, wait=600.0)
    tracker.start()
    for work_dir in work_dirs:
        tracker.follow(work_dir)
    for work_dir in work_dirs[1:]:
        tracker.close(work_dir)
    shipment = tracker.finish()
    wall = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if not shipment.complete:
        sys.exit(f"Not all records were uploaded: {shipment}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def check(work_dirs: list[Path], uri: str, log_model: bool) -> None:
    """Check that MLflow has everything."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    found = {run.info.run_id: run for run in client.search_runs([experiment.experiment_id], "", max_results=10_000)}
    assert len(found) == len(work_dirs)
    parent = Shipped.load(work_dirs[0], uri).run_id
    for work_dir in work_dirs[1:]:
        run = found[str(Shipped.load(work_dir, uri).run_id)]
        assert run.info.status == "FINISHED"
        assert run.data.params == RunInfo.read(work_dir).params
        assert run.data.tags["mlflow.parentRunId"] == parent
    last = run.info.run_id
    assert len(client.get_metric_history(last, "val/loss")) == EPOCHS
    assert len(client.list_artifacts(last, "checkpoints")) == 2
    assert len(client.search_logged_models([experiment.experiment_id], max_results=10)) == 10 * log_model


def profile(work_dirs: list[Path], uri: str, file: Path) -> None:
    """Ship in this process under the profiler, which makes the figures higher."""
    from trainyard.track.shipper.fleet import Fleet

    fleet = Fleet()
    watch = cProfile.Profile()
    for number, work_dir in enumerate(work_dirs):
        if number == 1:  # the store is open now
            watch.enable()
        fleet.open(work_dir)
        fleet.close(work_dir)
        fleet.round()
    watch.disable()
    fleet.leave()
    watch.dump_stats(file)
    pstats.Stats(watch).sort_stats("cumulative").print_stats("trainyard|store|client|session|shutil", 45)


def live(work_dirs: list[Path], uri: str, seconds: float, every: float) -> None:
    """Print the shipper's CPU time while all journals grow, and from their end on."""
    for work_dir in work_dirs[1:]:
        (work_dir / "metrics.jsonl").unlink()
    tracker = MLflowTracker(uri=uri, experiment=EXPERIMENT, wait=600.0)
    tracker.follow(work_dirs[0])
    time.sleep(4.0)  # it has started, and has imported what it needs
    assert tracker._process is not None
    pid = tracker._process.pid
    journals = [Journal(work_dir) for work_dir in work_dirs[1:]]
    for work_dir in work_dirs[1:]:
        tracker.follow(work_dir)
    for journal in journals:
        journal.status("RUNNING")
    before, begin, late, step = cpu_of(pid), time.perf_counter(), 0.0, 0
    while time.perf_counter() - begin < seconds:
        step += 1
        for journal in journals:
            journal.metrics(step, {"train/loss": 1 / step, "train/lr": 0.1, "train/time": 0.1, "train/data_time": 0.1})
        wait = begin + every * step - time.perf_counter()
        late = max(late, -wait)
        time.sleep(max(0.0, wait))
    while_live, wall = cpu_of(pid) - before, time.perf_counter() - begin
    print(
        f"{len(journals)} journals, {step} records each in {wall:.1f} s: the shipper took {while_live:.2f} s CPU, "
        f"{while_live / wall:.1%} of a core; the writer was late by {late * 1e3:.0f} ms at most"
    )
    begin = time.perf_counter()
    for journal in journals:
        journal.status("FINISHED")
        journal.close()
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    shipment = tracker.finish()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    rest = after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime - before - while_live
    print(
        f"after the end of the runs: {time.perf_counter() - begin:.1f} s wall, {rest:.1f} s CPU; {shipment.complete=}"
    )


def cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / HERTZ


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=256, help="number of runs (default: 256)")
    parser.add_argument(
        "--interval", type=int, default=10, help="iterations between two records; an epoch has 20 (default: 10)"
    )
    parser.add_argument("--log-model", action="store_true", help="also log a model of each run")
    parser.add_argument("--live", type=float, metavar="SECONDS", help="time for which all journals grow")
    parser.add_argument(
        "--every", type=float, default=0.1, metavar="SECONDS", help="time between two records (default: 0.1)"
    )
    parser.add_argument("--profile", type=Path, help="write a profile to this file, and print a summary")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    configure()
    with tempfile.TemporaryDirectory(prefix="trainyard-shipping-") as name:
        folder = Path(name)
        original = train(folder, options.interval, options.log_model)
        uri = new_store(folder)
        work_dirs = copies(original, folder, options.runs, uri)
        if options.profile:
            profile(work_dirs, uri, options.profile)
        elif options.live:
            live(work_dirs, uri, options.live, options.every)
        else:
            (folder / "start").mkdir()
            start_uri = new_store(folder / "start")
            start = ship(copies(original, folder / "start", int(options.log_model), start_uri), start_uri)
            whole = ship(work_dirs, uri)
            wall, cpu = (1e3 * (all_ - alone) / options.runs for all_, alone in zip(whole, start, strict=True))
            print(f"start {start[0]:.2f} s wall, {start[1]:.2f} s CPU")
            print(f"{options.runs} runs: {whole[0]:.2f} s wall, {whole[1]:.2f} s CPU", end="; ")
            print(f"{wall:.1f} ms wall, {cpu:.1f} ms CPU a run")
            check(work_dirs, uri, options.log_model)
            if options.json:
                options.json.write_text(json.dumps({"runs": options.runs, "wall_ms": wall, "cpu_ms": cpu}))


if __name__ == "__main__":
    main()
