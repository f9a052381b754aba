"""Trainer's side of tracking: it starts the shipper, sends it run directories, and reports the result.

This module does not import mlflow or torch, does not connect to a server, and cannot stop a training.
"""

from __future__ import annotations

import getpass
import os
import signal
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from trainyard import temporary
from trainyard.application import StartedAs
from trainyard.checks import boolean, choice, number, text
from trainyard.errors import ConfigError, TrainyardError
from trainyard.redaction import redact
from trainyard.track import facts, own, run_info
from trainyard.track import uri as uris
from trainyard.track.registered import registered
from trainyard.track.run_info import RunInfo
from trainyard.track.shipped import EXIT_STATUS, LOG, Shipment, shipping_process, summary
from trainyard.track.shipped import FILE as SHIPPED
from trainyard.track.shipper.sanitize import MAX_RUN_NAME
from trainyard.track.viewers import copies

_ROOT = Path(__file__).resolve().parents[2]  # the folder from which `trainyard` is imported
FORMATS = ("pickle", "export")
_CHECKPOINTS = ("best", "last")
_SELECTED = "an empty list, or a list with best, last or both"
_PARTING = 1.0  # seconds in which a shipper must end after it was asked to stop


class Tracker(ABC):
    """Interface for tracking runs.

    Call `start()` early, `open()` for each run's directory when its config is known to be valid, and `finish()` at the
    end. A command that ends before its first `open()` leaves no files.

    Attributes:
        log_model: whether the best model of a finished run is logged; `kept`: every checkpoint that the run keeps.
        model_format: `pickle`, or `export` for a program of `torch.export`.
        experiment_per_sweep: whether each sweep has a separate experiment.
        register: the name and the alias under which the best model of a run, or of a sweep, is registered.
        log_checkpoints: the checkpoints that are uploaded: "best", "last".
    """

    log_model: bool | str = False
    model_format: str = "pickle"
    experiment_per_sweep: bool = False
    register: tuple[str, str] | None = None
    log_checkpoints: tuple[str, ...] = ()

    def start(self) -> None:  # noqa: B027 (a tracker may have nothing to start)
        """Start preparations that take time, and return immediately."""

    def open(self, work_dir: str | Path, info: RunInfo, *, resume: bool = False, step: int = 0) -> RunInfo:
        """Write `run.json` to `work_dir`, and track its journal from now on.

        Args:
            work_dir: an existing folder.
            info: the run; its name, store and Python path are set, and text properties are written to files.
            resume: continue the run in `work_dir`, if there is one: its ID, name, experiment and URI do not change, and
                params with other values are recorded as its `changes`. A directory from elsewhere
                (`trainyard.track.own`) remains from elsewhere, and its store is not used.
            step: the iteration from which the run continues.

        Raises:
            ConfigError: `work_dir` contains a run and `resume` is false.
            OSError: `work_dir` cannot be written.
        """
        folder = Path(work_dir).absolute()
        info = self._complete(replace(info, facts=dict(info.facts)))
        is_own = True
        if (folder / run_info.FILE).exists():
            if not resume:
                raise ConfigError(
                    "work_dir",
                    str(folder),
                    "a directory without a run",
                    hint="To continue the run in this directory, use resume=true.",
                )
            earlier = RunInfo.read(folder)
            is_own = own.is_own(earlier, folder)
            info = info.continuing(earlier, step, there=is_own or not own.can_be_told())
        for fact, file in facts.FILES.items():
            if text := info.facts.pop(fact, ""):
                (folder / file).write_text(text, encoding="utf-8")
        for name in (run_info.FILE, SHIPPED):
            temporary.remove_left(folder, f".{name}.")
        if is_own:
            info = own.marked(info, folder)
        info.write(folder)
        self._track(folder)
        return info

    def follow(self, work_dir: str | Path) -> None:  # noqa: B027 (a tracker may have nothing to follow)
        """Track the run in `work_dir`, whose `run.json` another process has written (see `leave_shipping`)."""

    def leave_shipping(self) -> None:  # noqa: B027 (a tracker may have nothing to ship)
        """Write only `run.json` from now on: the parent process uploads the journals."""

    def close(self, work_dir: str | Path) -> None:  # noqa: B027 (a tracker may have nothing to close)
        """Mark the run in `work_dir` as no longer written; without a final status, its status becomes KILLED.

        A sweep calls this method, because its jobs end at different times. `finish()` closes all runs.
        """

    @abstractmethod
    def finish(self) -> Shipment:
        """Wait, up to a limit, until all records are uploaded, and return the result. Never raises."""

    def abort(self) -> Shipment:
        """End the upload within two seconds, even if it is incomplete, and return the result. Never raises.

        A command that must end immediately calls this method; `trainyard sync` uploads the remaining records.
        """
        return Shipment()

    def _complete(self, info: RunInfo) -> RunInfo:
        started = _started()
        return replace(
            info,
            user=info.user or _user(),
            source=info.source or Path(sys.argv[0]).name or None,
            program=info.program or ([] if started is None else started.command),
            config_path=info.config_path or (None if started is None else started.config_path),
            python_path=info.python_path or [*_python_path(tuple(sys.path), Path.cwd())],
        )

    def _track(self, work_dir: Path) -> None:  # noqa: B027 (a tracker may have nothing to do)
        """Track `work_dir`, whose `run.json` is written."""


class NoTracker(Tracker):
    """Tracker without MLflow. It writes the journal and `run.json`; `trainyard sync --uri` can upload them later.

    Args:
        ignored: settings of another tracker, which remain if `+tracker=none` is added to a resolved config.
    """

    def __init__(self, **ignored: Any) -> None:
        super().__init__()

    def finish(self) -> Shipment:
        return Shipment()


def as_tracker(given: object) -> Tracker:
    """Return a tracker unchanged; None is `NoTracker`.

    Raises:
        ConfigError: the value is not a tracker.
    """
    if given is None:
        return NoTracker()
    if not isinstance(given, Tracker):
        raise ConfigError(
            "tracker", given, "a trainyard.track.Tracker, its config, or None (on the command line, tracker=none)"
        )
    return given


class MLflowTracker(Tracker):
    """Tracks runs in MLflow, through a separate process that reads their journals.

    Args:
        uri: the URI of the MLflow server or database; by default, MLFLOW_TRACKING_URI, otherwise `sqlite:///mlflow.db`
            in the folder in which the command was started.
        experiment: the name of the experiment; by default, MLFLOW_EXPERIMENT_NAME, otherwise the experiment with the ID
            MLFLOW_EXPERIMENT_ID, otherwise `trainyard`.
        experiment_per_sweep: use a separate experiment for each sweep, `<experiment>/<the sweep's directory>`.
        run_name: the run's name in MLflow; by default, the run's own name.
        tags: additional MLflow tags for every run.
        log_model: log the best model of a finished run, for `mlflow.pytorch.load_model`. `kept`: also log each
            checkpoint that the run keeps.
        model_format: `pickle`, the module with its class; or `export`, a `torch.export` program of its predictions,
            which can be loaded without the code of the model.
        register: register the model of a finished run, or of a sweep's best job, under this name. `NAME@ALIAS` sets the
            alias of the version; the default is `best`.
        log_checkpoints: the checkpoints that are uploaded: "best", "last".
        wait: the maximum number of seconds that `finish()` waits.
        tensorboard: also write a TensorBoard event file to the run's directory.
        wandb: `offline`: also write an offline run of Weights & Biases to the run's directory when the run ends.

    Raises:
        ConfigError: an invalid MLflow URI, a deleted experiment, a name that MLflow does not accept, an unknown name in
            `log_checkpoints`, a negative `wait`, or a viewer that is not installed.
    """

    def __init__(
        self,
        uri: str | None = None,
        experiment: str | float | None = None,
        run_name: str | float | None = None,
        tags: Mapping[str, object] | None = None,
        log_model: bool | str = True,
        model_format: str = "pickle",
        register: str | None = None,
        experiment_per_sweep: bool = False,
        log_checkpoints: Sequence[str] = _CHECKPOINTS,
        wait: float = 60.0,
        tensorboard: bool = False,
        wandb: str | None = None,
    ) -> None:
        if not isinstance(log_checkpoints, list | tuple):
            raise ConfigError("log_checkpoints", log_checkpoints, _SELECTED)
        for name in log_checkpoints:
            if name not in _CHECKPOINTS:
                raise ConfigError("log_checkpoints", name, _SELECTED, options=_CHECKPOINTS)
        if not isinstance(tags, Mapping | None):
            raise ConfigError("tags", tags, "a mapping from names to values, or null")
        self.folder = uris.launch_folder()
        self.uri = uris.resolve(uri, self.folder)
        self.experiment, self.experiment_id = uris.experiment(experiment, self.uri)
        own_name = "null for the default name"
        self.run_name = None if run_name is None else text("run_name", run_name, at_most=MAX_RUN_NAME, other=own_name)
        self.tags = {str(key): str(value) for key, value in (tags or {}).items()}
        if not isinstance(log_model, bool) and log_model != "kept":
            raise ConfigError("log_model", log_model, "true, false or kept", options=("kept",))
        self.log_model = log_model
        self.model_format = choice("model_format", model_format, FORMATS)
        self.experiment_per_sweep = boolean("experiment_per_sweep", experiment_per_sweep)
        self.register = None if register is None else registered(register)
        if self.register and not log_model:
            raise ConfigError("register", register, "null, because log_model=false logs no model to register")
        self.log_checkpoints = tuple(log_checkpoints)
        self.wait = number("wait", wait, at_least=0, unit="seconds")
        self.copies = copies(tensorboard, wandb)
        self._ships = True
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (what the shipper says before it knows a run's folder)
        self._error: str | None = None
        self._runs: dict[Path, None] = {}  # sets, in the order in which the shipper receives them
        self._open: dict[Path, None] = {}
        self._finished: Shipment | None = None

    def start(self) -> None:
        """Start the shipper, which imports mlflow while this process imports torch; returns within milliseconds."""
        if self._process is not None or not self._ships:
            return
        environment = os.environ | {"MLFLOW_TRACKING_URI": self.uri}
        if "site-packages" not in _ROOT.parts:
            search_path = [environment.get("PYTHONPATH"), str(_ROOT)]
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, search_path))
        try:
            self._process = subprocess.Popen(
                # -P: no file in the folder of the command may shadow a module of the shipper.
                [sys.executable, "-P", "-m", "trainyard.track.shipper"],
                stdin=subprocess.PIPE,
                stdout=self._output,
                stderr=self._output,
                cwd=self.folder,
                env=environment,
                bufsize=0,
                start_new_session=True,  # Ctrl-C is for the trainer
            )
            self._error = None
        except OSError as error:
            self._error = f"The shipper could not be started: {error}."

    def follow(self, work_dir: str | Path) -> None:
        folder = Path(work_dir).absolute()
        if folder not in self._runs:
            self._track(folder)

    def leave_shipping(self) -> None:
        self._ships = False

    def close(self, work_dir: str | Path) -> None:
        folder = Path(work_dir).absolute()
        if folder in self._open:
            del self._open[folder]
            self._say(f"close {folder}")

    def finish(self) -> Shipment:
        if self._finished is None:
            self._finished = self._finish()
        return self._finished

    def abort(self) -> Shipment:
        if self._process is not None and os.getpid() == self._owner:
            self._say("stop")
            self._hang_up()
            try:
                self._process.wait(_PARTING)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                with suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)  # safe at any moment: interrupted work is sent again
                self._process.wait()
            self._finished = self._shipment(running=False, stopped=True)
        return self._finished or Shipment()

    def _finish(self) -> Shipment:
        if not self._runs or os.getpid() != self._owner:
            self._hang_up()
            return Shipment()
        deadline = time.monotonic() + self.wait
        if self._dead():
            self._revive()
        running = self._wait_until(deadline)
        shipment = self._shipment(running)
        if not shipment.complete and self._process is not None and (self._process.returncode or 0) < 0:
            self._revive()  # it was killed while it shipped the rest
            shipment = self._shipment(self._wait_until(deadline))
        return shipment

    def _complete(self, info: RunInfo) -> RunInfo:
        return replace(
            super()._complete(info),
            name=self.run_name or info.name,
            tags=self.tags | info.tags,
            experiment=info.experiment or self.experiment,
            experiment_id=None if info.experiment else self.experiment_id,
            uri=redact(self.uri),
            copies=self.copies,
        )

    def _track(self, work_dir: Path) -> None:
        if not self._ships:
            return
        self._finished = None
        self._runs[work_dir] = self._open[work_dir] = None
        if self._dead():
            self._revive()
        else:
            self._say(f"open {work_dir}")

    def _dead(self) -> bool:
        if os.getpid() != self._owner:
            return False  # a fork shares the pipe, and cannot wait for its parent's child
        return self._process is None or self._process.poll() is not None

    def _revive(self) -> None:
        """Start the shipper if it was never started, or start it again after it died."""
        self._hang_up()
        self._process = None
        self.start()
        for work_dir in self._runs:
            self._say(f"open {work_dir}")
            if work_dir not in self._open:
                self._say(f"close {work_dir}")

    def _say(self, line: str) -> None:
        if self._process is not None and self._process.stdin is not None and not self._process.stdin.closed:
            with suppress(OSError):  # it died: finish() notices
                self._process.stdin.write(line.encode(errors="surrogateescape") + b"\n")

    def _hang_up(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()

    def _wait_until(self, deadline: float) -> bool:
        """Return whether the shipper is still running after waiting."""
        if self._process is None:
            return False
        self._say("end")  # closing alone is not enough: forked data loaders hold the pipe open too
        self._hang_up()
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            return True
        return False

    def _shipment(self, running: bool, stopped: bool = False) -> Shipment:
        runs = []
        error = self._error
        for work_dir in self._runs:
            try:
                run = summary(work_dir)
                if running and not run.complete and self._is_elsewhere(work_dir):
                    run = replace(
                        run, error="Another shipper, such as that of an earlier start, is uploading this run."
                    )
                runs.append(run)
            except (OSError, TrainyardError) as missing:
                error = str(missing)
        complete = all(run.complete for run in runs)
        status = None if self._process is None else self._process.returncode
        if error is None and stopped and not complete:
            error = "The shipper was stopped."
        elif error is None and status == EXIT_STATUS[2] and not complete:
            error = "MLflow did not respond."
        elif error is None and status is not None and status not in EXIT_STATUS and not complete:
            error = self._crash(status)
        return Shipment(tuple(runs), running, error)

    def _crash(self, status: int) -> str:
        """Return a message about a shipper that ended with this status before it had uploaded all records."""
        self._output.seek(0)
        if said := self._output.read().decode(errors="replace").strip().splitlines():
            return f"The shipper ended early: {redact(said[-1])}"
        how = f"was killed by signal {-status}" if status < 0 else f"ended early with exit status {status}"
        log = next(iter(self._runs), Path()) / LOG
        with suppress(OSError):
            if log.stat().st_size:
                return f"The shipper {how}. See {log}."
        return f"The shipper {how}."

    def _is_elsewhere(self, work_dir: Path) -> bool:
        """Return whether a shipper of another process is uploading a run, so that the own shipper waits for it."""
        pid = None if self._process is None else self._process.pid
        return shipping_process(work_dir) not in (None, pid)


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container whose user has no name
        return str(os.getuid()) if hasattr(os, "getuid") else None


def _started() -> StartedAs | None:
    """Return how the program of this process was started; None for a worker of a sweep, and for a rank."""
    started = StartedAs.now()
    if started is None or (started.module or "").startswith(("trainyard.sweep.", "trainyard.distributed.")):
        return None
    return started


@cache
def _python_path(search_path: tuple[str, ...], here: Path) -> tuple[str, ...]:
    """Return the folders of a search path, except for those of the interpreter and the installed packages.

    Args:
        search_path: the folders.
        here: the current folder, against which relative folders are resolved.
    """
    library = Path(os.__file__).resolve().parent
    folders = ((here / folder).resolve() for folder in search_path)
    return tuple(
        str(folder)
        for folder in folders
        if folder.is_dir()
        and not folder.is_relative_to(library)
        and not {"site-packages", "dist-packages"}.intersection(folder.parts)
    )
