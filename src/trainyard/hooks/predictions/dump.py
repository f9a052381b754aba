"""Prediction dump hook: a file of the predictions of a test."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from trainyard.checks import boolean, number
from trainyard.data import Loader
from trainyard.data.transfer import apply
from trainyard.errors import TrainyardError
from trainyard.hooks.predictions.file import Predictions, PredictionWriter, UnfitError, join
from trainyard.runner import Member, Runner
from trainyard.runner.hook import Hook
from trainyard.runner.model_losses import predictions

log = logging.getLogger("trainyard")


class PredictionDump(Hook):
    """Writes the predictions of a test, with their targets, to `predictions.parquet` in the run's directory.

    `trainyard.evaluate` computes metrics from this file without the model. For a named test set, `test/easy`, the file
    is `predictions_easy.parquet`. The file is an artifact of the run in MLflow, unless it is larger than `upload_mb`.

    Predictions without one row per sample are not written; the log states the reason, and the test continues.
    Predictions are written during the test, so that memory use does not grow. With several ranks, rank 0 joins the
    files of all ranks.

    Args:
        inputs: write the complete batch, not only its target, for metrics that read the inputs.
        after_training: also write the predictions of a test that follows training in one session, as with `mode=train`.
        max_mb: the maximum size in megabytes; a larger file is not kept.
        upload_mb: the maximum size in megabytes for upload; a larger file stays in the directory and is not uploaded to
            MLflow.
    """

    priority = "LOW"
    stackable = True
    own_places = True

    def __init__(
        self,
        inputs: bool = False,
        after_training: bool = False,
        max_mb: float = 4096,
        upload_mb: float = 100,
    ) -> None:
        self.inputs = boolean("inputs", inputs)
        self.after_training = boolean("after_training", after_training)
        self.max_mb = number("max_mb", max_mb, at_least=0, finite=False, unit="megabytes")
        self.upload_mb = number("upload_mb", upload_mb, at_least=0, finite=False, unit="megabytes")
        self._on = self._trained = False
        self._writers: dict[str, list[PredictionWriter]] = {}
        self._reasons: dict[str, str] = {}
        self._orders: dict[str, list[int] | None] = {}

    def before_run(self, runner: Runner) -> None:
        self._trained = False

    def before_train(self, runner: Runner) -> None:
        self._trained = True

    def before_test(self, runner: Runner) -> None:
        self._close()
        self._on = runner.work_dir is not None and (self.after_training or not self._trained)
        if self._on and runner.strategy.is_main:  # now, because no loader is being iterated
            self._orders = {name: _order(runner.loader(name)) for name in runner.sets("test")}

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        name = runner.test_loop.current
        if not self._on or name in self._reasons:
            return
        if name not in self._writers:
            self._writers[name] = self._begun(runner, name)
        outputs = predictions(runner, "test", data_batch, outputs)
        group = runner.stacked  # outputs have a member axis
        try:
            for k, writer in enumerate(self._writers[name]):
                writer.add(data_batch, _member(outputs, k) if group else outputs)
        except (UnfitError, OSError) as error:
            self._give_up(name, error)

    def after_test(self, runner: Runner) -> None:
        for name in runner.sets("test") if self._on else ():
            if runner.strategy.world_size > 1:
                self._share(runner, name)
            if runner.strategy.is_main:
                self._write(runner, name)
        self._close()

    def after_run(self, runner: Runner) -> None:
        self._close()  # the test may have been interrupted

    def _begun(self, runner: Runner, name: str) -> list[PredictionWriter]:
        """Return a writer for each member; with several ranks, one for the predictions of this rank."""
        if runner.strategy.world_size > 1:
            return [self._writer(_part(runner, name))]
        return [self._writer(member.directory / _file_name(name), self._orders[name]) for member in runner.members]

    def _writer(self, file: Path, index: list[int] | None = None) -> PredictionWriter:
        return PredictionWriter(file, inputs=self.inputs, max_bytes=self.max_mb * 1e6, index=index)

    def _share(self, runner: Runner, name: str) -> None:
        """Join the predictions of all ranks on rank 0, through files in the run's directory."""
        strategy, part = runner.strategy, _part(runner, name)
        try:
            if name in self._writers and name not in self._reasons:
                self._writers[name][0].finish()
        except (UnfitError, OSError) as error:
            self._give_up(name, error)
        try:
            ranks = strategy.gather((self._reasons.get(name), part if part.exists() else None))
            if strategy.is_main:
                for reason, _ in ranks:
                    if reason is not None:
                        self._give_up(name, reason)
                if name not in self._reasons:
                    file = runner.members[0].directory / _file_name(name)
                    self._writers[name] = [self._writer(file, self._orders[name])]
                    join([Predictions.read(path) for _, path in ranks if path], self._writers[name][0])
        except (TrainyardError, OSError) as error:
            self._give_up(name, error)
        finally:
            strategy.gather(None)  # no part is removed before rank 0 has read it
            part.unlink(missing_ok=True)

    def _write(self, runner: Runner, name: str) -> None:
        spec = _plain(runner.data.spec) if runner.data else {}
        try:
            if name not in self._reasons:
                for writer, member in zip(self._writers[name], runner.members, strict=True):
                    writer.finish(split=name, spec=spec)
                    self._tell(member, member.directory / _file_name(name))
        except (UnfitError, OSError) as error:
            self._give_up(name, error)
        if name in self._reasons:
            log.warning("The predictions for %s are not written: %s.", name, self._reasons[name])

    def _tell(self, member: Member, file: Path) -> None:
        shown = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
        size, limit = file.stat().st_size / 1e6, f"hook.predictions.upload_mb={self.upload_mb:g}"
        large = f" ({size:.6g} MB; larger than {limit}, so the file is not uploaded)" if size > self.upload_mb else ""
        log.info("Predictions: %s%s", shown, large, extra={"member": member})
        if not large:
            member.journal.artifact(file)

    def _give_up(self, name: str, reason: object) -> None:
        self._reasons.setdefault(name, str(reason))
        for writer in self._writers.get(name, ()):
            writer.close()

    def _close(self) -> None:
        for writers in self._writers.values():
            for writer in writers:
                writer.close()
        self._writers, self._reasons, self._orders = {}, {}, {}


def _member(outputs: Any, k: int) -> Any:
    return apply(lambda leaf: leaf[k] if isinstance(leaf, Tensor) else leaf, outputs)


def _file_name(name: str) -> str:
    return f"predictions{name.removeprefix('test').replace('/', '_')}.parquet"


def _part(runner: Runner, name: str) -> Path:
    """Return the file of this rank's predictions for a test set."""
    return runner.members[0].directory / f".{runner.strategy.rank}.{_file_name(name)}"


def _order(loader: Loader) -> list[int] | None:
    """Return the samples' data-set numbers in serving order; None if the loader keeps the order or does not give it."""
    order = getattr(loader, "order", None) if getattr(loader, "shuffle", True) else None
    found = order(0) if order else None
    numbers = found.tolist() if isinstance(found, Tensor) else found
    return numbers if numbers and all(type(number) is int for number in numbers) else None


def _plain(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the properties of the data that a file can contain."""
    return {key: value for key, value in spec.items() if isinstance(value, int | float | str | list)}
