"""Shipper process, `python -m trainyard.track.shipper`, which reads its orders from standard input, one per line.

    open DIR     ship the run in DIR, from now on
    close DIR    the run in DIR is no longer written
    end          no run is written any more: ship the rest and end. The end of the input means the same
    stop         end as soon as possible, even with records left

The exit code is 0 if everything is shipped, 3 if something is not shipped, and 4 if MLflow did not respond in time
after the end. Without an `open`, the process leaves no files.
"""

from __future__ import annotations

import functools
import gc
import os
import queue
import resource
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from trainyard import temporary
from trainyard.track.shipped import EXIT_STATUS, LOG
from trainyard.track.shipper.exchange import Exchanges, patience

Order = tuple[str, str]


def configure() -> None:
    """Set MLflow's settings that the user has not set: quiet, without telemetry, with short timeouts."""
    settings = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",  # seconds
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the shipper retries by itself
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def listen(orders: queue.SimpleQueue[Order], fleet_is_up: threading.Event, at_end: Callable[[], object]) -> None:
    """Read orders from standard input, in a thread, so that the trainer never waits for the shipper.

    Args:
        orders: the queue of the orders that were read.
        fleet_is_up: an event that is set once the orders can be executed.
        at_end: a function that is called at the end, even if this process is waiting for something.
    """
    named = False
    with open(0, "rb", closefd=False) as lines:
        for line in lines:
            verb, _, path = line.rstrip(b"\n").decode(errors="surrogateescape").partition(" ")
            if verb == "end":
                break
            if verb == "stop" and not fleet_is_up.is_set():
                os._exit(EXIT_STATUS[1])  # possibly during an import
            named = True
            orders.put((verb, path))
    if not named:
        os._exit(EXIT_STATUS[0])  # the command ended before it had a run: exit at once, possibly during an import
    at_end()
    orders.put(("end", ""))


def keep_log(work_dir: Path) -> None:
    """Redirect the output of this process into the directory of the first run, with the output so far."""
    with suppress(OSError):
        fd = os.open(work_dir / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        with suppress(OSError):
            os.write(fd, os.pread(2, 1 << 20, 0))
            os.ftruncate(2, 0)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        os.close(fd)


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # meant for the trainer; this process ends at the end of its input
    with suppress(OSError):
        os.nice(10)
    limit = patience()
    configure()
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}  # the trainer needs the machine
    orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
    fleet_is_up = threading.Event()
    exchanges = Exchanges()

    def late() -> None:
        print(f"MLflow did not respond for {limit:g} s. The remaining records stay in the journal.", flush=True)
        os._exit(EXIT_STATUS[2])

    watch = functools.partial(exchanges.watch, limit, late)
    threading.Thread(target=listen, args=(orders, fleet_is_up, watch), daemon=True).start()

    from trainyard.track.shipper.fleet import Fleet  # imports mlflow: 1.4 s, while the trainer imports torch
    from trainyard.track.shipper.store import warm

    warm(os.environ.get("MLFLOW_TRACKING_URI", ""))
    fleet_is_up.set()
    _spare_the_collector()
    fleet = Fleet(exchanges)
    log: Path | None = None
    own: Path | None = None
    rest: float | None = None
    stopped = False
    while not (fleet.finished or stopped):
        for verb, path in _orders(orders, rest):
            work_dir = Path(path)
            if verb == "open":
                if log is None:
                    log = work_dir / LOG
                    keep_log(work_dir)
                    own = temporary.use_own_folder()
                fleet.open(work_dir)
            elif verb == "close":
                fleet.close(work_dir)
            elif verb == "end":
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                fleet.end()
            elif verb == "stop":
                stopped = True
        rest = 0.0 if stopped else fleet.work()
    status = EXIT_STATUS[1] if fleet.gave_up else EXIT_STATUS[0]
    if not stopped:
        fleet.leave()
    if log is not None and log.exists() and log.stat().st_size == 0:
        log.unlink()
    if own is not None:
        shutil.rmtree(own, ignore_errors=True)
    return status


def _spare_the_collector() -> None:
    """Exempt loaded objects from garbage collection, because repeatedly scanning them takes a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))  # each run takes one


def _orders(orders: queue.SimpleQueue[Order], rest: float | None) -> list[Order]:
    """Return the orders, after waiting until there is one or `rest` seconds have passed (None: no limit)."""
    found = []
    with suppress(queue.Empty):
        found.append(orders.get(timeout=rest))
        while True:
            found.append(orders.get_nowait())
    return found


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # the libraries' own shutdown takes longer than a small run's last records
