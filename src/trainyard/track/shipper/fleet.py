"""The runs that one shipper looks after."""

from __future__ import annotations

from pathlib import Path

from trainyard.errors import TrainyardError
from trainyard.track import journal
from trainyard.track.shipped import RunShipment, summary
from trainyard.track.shipper.run import InUseError, RunShipper
from trainyard.track.shipper.store import RunLostError, Stores


class Fleet:
    """Ships several runs in turn; a store that fails is left in peace for a while, with all its runs.

    Attributes:
        ending: whether `end()` was called.
        gave_up: whether something stays unshipped, once `finished`.
    """

    def __init__(self) -> None:
        self._stores = Stores()
        self._runs: dict[Path, RunShipper] = {}
        self.ending = False

    def open(self, work_dir: Path) -> None:
        """Takes up a run, also one that was there before and is resumed."""
        self._drop(work_dir)
        try:
            self._runs[work_dir] = RunShipper(work_dir, self._stores)
        except TrainyardError as error:
            print(error, flush=True)

    def close(self, work_dir: Path) -> None:
        """Nobody writes in this directory any more."""
        if run := self._runs.get(work_dir):
            run.writer_left()

    def end(self) -> None:
        """Nobody writes anywhere any more."""
        self.ending = True
        for run in self._runs.values():
            run.writer_left()
            for backoff in (run.trying, run.uploading, self._stores.backoff(run.uri)):
                backoff.hurry()

    def round(self) -> None:
        """Lets each run ship what it has."""
        for work_dir, run in list(self._runs.items()):
            if not work_dir.is_dir():  # deleted by somebody
                self._drop(work_dir)
                continue
            store = self._stores.backoff(run.uri)
            if not (store.due and run.trying.due):
                continue
            try:
                if run.step():
                    store.succeeded()
                run.trying.succeeded()
            except (InUseError, RunLostError, TrainyardError) as error:
                run.failed(error)
                run.trying.failed()
            except Exception as error:
                run.failed(error)
                store.failed()
                self._runs[work_dir] = self._runs.pop(work_dir)  # let another one try first next time
            if run.done:
                self._drop(work_dir)

    def leave(self) -> None:
        """Lets go of everything."""
        for work_dir in list(self._runs):
            self._drop(work_dir)
        self._stores.close()

    @property
    def finished(self) -> bool:
        """Whether, after `end()`, nothing is left that can be shipped."""
        return self.ending and all(self._hopeless(run) for run in self._runs.values())

    @property
    def gave_up(self) -> bool:
        return bool(self._runs)

    def _hopeless(self, run: RunShipper) -> bool:
        return any(backoff.hopeless for backoff in (run.trying, run.uploading, self._stores.backoff(run.uri)))

    def _drop(self, work_dir: Path) -> None:
        if run := self._runs.pop(work_dir, None):
            run.release()


def ship_now(work_dir: Path, stores: Stores, uri: str | None = None) -> RunShipment:
    """Ships what is left of one run, in one go.

    Args:
        uri: the store to ship to; by default the one in `run.json`.

    Raises:
        InUseError: another process is shipping it.
        TrainyardError: there is no run, or none that says where it is tracked.
    """
    run = RunShipper(work_dir, stores, uri)
    if not journal.being_written(work_dir / journal.FILE):
        run.writer_left()
    try:
        run.step()
    except InUseError:
        raise
    except Exception as error:
        run.failed(error)
    finally:
        run.release()
    return summary(work_dir, uri)
