"""Synchronization of runs with MLflow that were not shipped during training."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path

from trainyard.errors import TrainyardError
from trainyard.quoting import named
from trainyard.redaction import redact
from trainyard.track import RunInfo, own, run_info
from trainyard.track.shipped import RunShipment, Shipped, summary
from trainyard.track.uri import resolve


def runs_below(folders: list[Path]) -> tuple[list[tuple[Path, RunInfo]], bool]:
    """Return the runs in these folders, parents before their children, and whether all folders could be read."""
    found = {}
    readable = True
    for folder in folders:
        for path in sorted(folder.rglob(run_info.FILE)):
            try:
                found[path.parent.resolve()] = RunInfo.read(path.parent)
            except TrainyardError as error:
                print(error)
                readable = False
    return sorted(found.items(), key=lambda item: item[1].parent is not None), readable


def check_place(work_dir: Path, info: RunInfo, trust: bool) -> None:
    """Check that a directory from elsewhere does not determine where its run and the user's credentials are sent.

    Raises:
        TrainyardError: the directory names another store than the environment.
    """
    if trust or info.uri is None or own.is_own(info, work_dir) or info.uri == redact(resolve(None, Path.cwd())):
        return
    raise TrainyardError(
        f"{info.name} ({work_dir}) is not recognized as your own run (it may be a copy or a download), and names a "
        f"store other than the one of your environment: {info.uri}. No data and no credentials were sent to that "
        "store. Pass a store with --uri, or trust the directory with --trust."
    )


def sync(folders: list[Path], uri: str | None, experiment: str | None, trust: bool) -> bool:
    """Ship the runs below some folders, and report how much of each run MLflow has.

    Records that MLflow already has are not sent again.

    Args:
        folders: the directories of runs, or folders with runs below them.
        uri: the URI of the destination; None for the store that is recorded in each run.
        experiment: the experiment in which to create runs that MLflow does not have; None for the one that is recorded
            in each run.
        trust: whether to mark directories from elsewhere as the user's own.

    Returns:
        Whether MLflow has all records of all runs. A run that another shipper is uploading counts as it is now.
    """
    from trainyard.track.shipper.exchange import Exchanges, patience
    from trainyard.track.shipper.fleet import ship_now  # imports mlflow
    from trainyard.track.shipper.run_shipper import InUseError, awaits_others
    from trainyard.track.shipper.store import Stores

    runs, complete = runs_below(folders)
    if not runs:
        print(f"No runs found in {named(folders)}.")
    exchanges, limit = Exchanges(), patience()

    def late() -> None:
        print(f"MLflow did not respond for {limit:g} s. Try again later.", flush=True)
        os._exit(1)

    end = exchanges.watch(limit, late)
    stores = Stores(exchanges)
    left: deque[tuple[Path, RunInfo, RunShipment | None]] = deque((*run, None) for run in runs)
    while left:
        work_dir, info, earlier = left.popleft()
        try:
            if trust and not own.is_own(info, work_dir):
                own.marked(info, work_dir).write(work_dir)
            if uri is None:
                check_place(work_dir, info, trust)
            before = earlier or summary(work_dir, uri)
            after = ship_now(work_dir, stores, uri, experiment=experiment, trust=trust)
            pending = Shipped.load(work_dir, after.uri or "").uploads
            if earlier is None and left and any(map(awaits_others, pending)):
                left.append((work_dir, info, before))  # a sweep refers to its jobs, which follow
                continue
        except InUseError:
            print(f"{info.name} ({work_dir}): skipped, because another shipper is uploading this run.")
            complete &= summary(work_dir, uri).complete
        except (TrainyardError, OSError) as error:
            print(error)
            complete = False
        else:
            # A run that was deleted from MLflow is created again: nothing of before is in this one.
            new = after.shipped - (before.shipped if after.run_id == before.run_id else 0)
            print(
                f"{after}\n  {new} of these records {'was' if new == 1 else 'were'} uploaded by this command"
                if new
                else f"{after}\n  no new records",
                end="",
            )
            print(f"; {after.where}" if after.run_id else "")
            complete &= after.complete
    stores.close()
    end()
    return complete
