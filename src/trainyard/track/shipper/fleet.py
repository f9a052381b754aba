"""Set of the runs that one shipper process ships."""

from __future__ import annotations

import time
from pathlib import Path

from trainyard.errors import TrainyardError
from trainyard.track import journal, own
from trainyard.track.shipped import RunShipment, summary
from trainyard.track.shipper.copies import Copies
from trainyard.track.shipper.exchange import Exchanges
from trainyard.track.shipper.run_shipper import InUseError, RunShipper
from trainyard.track.shipper.store import RunLostError, Stores

POLL = 0.4  # seconds between two looks at the journals, at most
EVERY = 1.0  # seconds between two shipments of an active run, at least
SLICE = 0.1  # seconds after which new orders are read
_SHARE = 9  # active runs rest this many times longer than they were worked on
_MAX_REST = 5.0


class Fleet:
    """Ships several runs in turn; after a failure, a store and all its runs are paused for a while.

    Args:
        exchanges: the counter of the exchanges with the stores.

    Attributes:
        ending: whether `end()` was called.
        gave_up: whether something remains unshipped, once `finished` is true.
    """

    def __init__(self, exchanges: Exchanges | None = None) -> None:
        self._stores = Stores(exchanges)
        self._runs: dict[Path, RunShipper] = {}
        self._copies: dict[Path, Copies] = {}
        self._next_turn = 0.0  # of the active runs; by `time.monotonic`
        self.ending = False

    def open(self, work_dir: Path) -> None:
        """Add a run, which may have been added before and is now resumed."""
        self._drop(work_dir)
        try:
            run = self._runs[work_dir] = RunShipper(work_dir, self._stores, trust=not own.can_be_told())
            self._copies[work_dir] = run.copies()
        except TrainyardError as error:
            print(error, flush=True)

    def close(self, work_dir: Path) -> None:
        """Mark the run in this directory as no longer written."""
        if run := self._runs.get(work_dir):
            run.writer_left()

    def end(self) -> None:
        """Mark all runs as no longer written."""
        self.ending = True
        for run in self._runs.values():
            run.writer_left()
            for backoff in (run.trying, run.uploading, run.awaiting, run.locking, self._stores.backoff(run.uri)):
                backoff.hurry()

    def work(self) -> float:
        """Ship for a short time, and return the seconds to rest until the next call.

        Ended runs come first. Each active run is processed once a second, or less often if this would take more than a
        tenth of the time.
        """
        begin = time.monotonic()
        for run in [run for run in self._runs.values() if run.gone]:
            self._step(run)
            if time.monotonic() - begin > SLICE:
                return 0.0
        rest = POLL / 4 if self.ending else POLL
        begin = time.monotonic()
        if begin < self._next_turn:
            return min(rest, self._next_turn - begin)
        for run in sorted(self._runs.values(), key=lambda run: run.looked):
            if not (run.gone or run.idle) and begin - run.looked >= EVERY:
                self._step(run)
                if time.monotonic() - begin > SLICE:
                    break
        now = time.monotonic()
        self._next_turn = now + min(_SHARE * (now - begin), _MAX_REST)
        return rest

    def round(self) -> None:
        """Let each run ship its new records."""
        for run in list(self._runs.values()):
            self._step(run)

    def leave(self) -> None:
        """Release all runs."""
        for work_dir in list(self._runs):
            self._drop(work_dir)
        self._stores.close()

    def _step(self, run: RunShipper) -> None:
        if not run.work_dir.is_dir():  # the directory was deleted
            self._drop(run.work_dir)
            return
        store = self._stores.backoff(run.uri)
        if not (store.due and run.trying.due and run.locking.due):
            self._copy(run)
            return
        for other in list(self._runs.values()) if run.info.parent and not run.connected else []:
            if other.info.id == run.info.parent and not other.connected:
                self._step(other)  # a run is created below its parent, so the parent goes first
        try:
            if run.step():
                store.succeeded()
            run.trying.succeeded()
        except InUseError as error:
            run.failed(error)
        except (RunLostError, TrainyardError) as error:
            run.failed(error)
            run.trying.failed()
        except Exception as error:
            run.failed(error)
            store.failed()
            self._runs[run.work_dir] = self._runs.pop(run.work_dir)  # let another one try first next time
        self._copy(run)
        if run.done:
            self._drop(run.work_dir)
            for other in self._runs.values():
                other.awaiting.succeeded()  # it may be this one that it waits for

    @property
    def finished(self) -> bool:
        """True if nothing is left that can be shipped after `end()`."""
        return self.ending and all(self._hopeless(run) for run in self._runs.values())

    @property
    def gave_up(self) -> bool:
        return bool(self._runs)

    def _hopeless(self, run: RunShipper) -> bool:
        if run.locking.failing:
            return False  # another shipper is uploading it, such as that of a killed trainer, and will release it
        own = (run.trying, run.uploading, run.awaiting)
        return any(backoff.hopeless for backoff in (*own, self._stores.backoff(run.uri)))

    def _copy(self, run: RunShipper) -> None:
        if run.locked:
            self._copies[run.work_dir].step(run.gone)

    def _drop(self, work_dir: Path) -> None:
        self._copies.pop(work_dir, None)
        if run := self._runs.pop(work_dir, None):
            run.release()


def ship_now(
    work_dir: Path, stores: Stores, uri: str | None = None, *, experiment: str | None = None, trust: bool = False
) -> RunShipment:
    """Ship the remaining records of one run in a single pass.

    Args:
        uri: the store to ship to; by default the one in `run.json`.
        experiment: the experiment in which a run that MLflow does not have is created; by default the one in
            `run.json`.
        trust: run the code and follow the links of the run, even if the directory is not the user's own.

    Raises:
        InUseError: another process is shipping it.
        TrainyardError: there is no run, or its `run.json` does not name the store in which it is tracked.
    """
    run = RunShipper(work_dir, stores, uri, experiment=experiment, search=True, trust=trust)
    if not journal.being_written(work_dir / journal.FILE):
        run.writer_left()
    try:
        run.step()
    except InUseError:
        raise
    except Exception as error:
        run.failed(error)
    finally:
        if run.locked:
            run.copies().step(run.gone)
        run.release()
    return summary(work_dir, uri)
