"""Methods of a Runner for scripts and notebooks, between and after trainings."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from trainyard.batch import joined, to_device
from trainyard.data.lengths import no_batches
from trainyard.errors import ConfigError
from trainyard.runner import checkpoint
from trainyard.runner.contract import length_of
from trainyard.runner.dispatch import Dispatch, priority
from trainyard.runner.loops import TrainLoop
from trainyard.runner.parts import Parts
from trainyard.runner.state import Start, restore

log = logging.getLogger(__name__)


class Interactive(Parts):
    """Methods of a Runner for scripts and notebooks."""

    _returned = False
    """Whether a training has ended, so that the next one continues after it."""

    def register_hook(self: Any, hook: Any, name: str | None = None, *, at: int | str | None = None) -> None:
        """Add a hook, like `hooks={name: hook}` of the Runner; during a training, it is active from the next epoch on.

        Args:
            hook: a `trainyard.hooks.Hook`.
            name: its name, under which checkpoints contain its state; by default, the name of its class.
            at: its priority, as a number or a name; None: the priority of the hook.

        Raises:
            ConfigError: a hook with this name exists, or the object is not a hook.
        """
        name = type(hook).__name__ if name is None else name
        if name in self.dispatch.hooks:
            hint = f"Names in use: {', '.join(self.dispatch.hooks)}."
            raise ConfigError("name", name, "a name that no other hook has", hint=hint)
        if at is not None:
            priority(at, "at")
            hook.priority = at
        self.dispatch = Dispatch({**self.dispatch.hooks, name: hook}, self.own_stages)
        self.added_hooks[name] = hook

    def save_checkpoint(self: Any, path: str | Path) -> Path:
        """Write the complete state of the run, from which `resume=<path>` and `load_checkpoint` continue.

        Returns:
            The path of the file.

        Raises:
            ConfigError: the run is on several devices.
            DiskFullError: no space is left.
            OSError: the file cannot be written.
        """
        self.prepare()
        if self.strategy.world_size > 1:
            raise ConfigError(
                "strategy",
                type(self.strategy).__name__,
                "single (with several devices, use hook.checkpoint to save a checkpoint of all ranks)",
            )
        (state,) = self.checkpoint()
        self.call("before_save_checkpoint", checkpoint=state, member=self.members[0])
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.save(file, state)
        return file

    def load_checkpoint(self: Any, path: str | Path) -> None:
        """Continue from a checkpoint: restore weights, optimizer, schedule, hooks, position and random generators.

        Raises:
            ConfigError: the checkpoint does not exist, is damaged, or belongs to another training.
        """
        self.prepare()
        restore(self.members[0], Start("path", *checkpoint.given("path", str(path))))

    def predict(self: Any, loader: Any, split: str = "val") -> Any:
        """Return the evaluated model's predictions for all batches of a loader, joined, on the CPU.

        Args:
            loader: batches like those of the data, with or without targets; or the name of a set of the run's data.
            split: "val" or "test": whether `val_step` or `test_step` predicts.

        Raises:
            ConfigError: the loader has no batches.
        """
        self.prepare(loader if isinstance(loader, str) else self._any_split())
        batches = self.loader(loader).batches() if isinstance(loader, str) else iter(loader)
        model = self.eval_model
        training, step = model.training, self.predict_step(split, losses=False)
        model.eval()
        try:
            with torch.no_grad():
                found = [to_device(step(batch), torch.device("cpu")) for batch in batches]
        finally:
            model.train(training)
        if not found:
            if isinstance(loader, str):
                raise no_batches(loader)
            raise ConfigError("loader", type(loader).__name__, "a loader with at least one batch")
        return joined(found)

    def _any_split(self: Any) -> str:
        return next((split for split in ("val", "test") if self.has_split(split)), "train")

    def go_on(self: Any) -> None:
        """Continue after an interrupted training; log a message if there is nothing left to do."""
        if self._returned:  # else it may have been interrupted before it began
            self.interrupted = self.asked_to_end = False
        self._returned = True
        loop = self.train_loop
        done, length = self.epoch if loop.unit == "epoch" else self.iter, length_of(loop, self)
        if self.iter and length is not None and done >= length and not loop.val_due:
            advice = f"increase the length of the loop ({type(loop).__name__})"
            if isinstance(loop, TrainLoop):
                key = f"loop.max_{loop.unit}s"
                advice = f"set {key}={2 * done} in the config, or runner.train_loop.length = {2 * done} in Python"
            log.warning(
                "Nothing to train: the run has finished (%s %d of %d). To train longer, %s.",
                *(loop.unit, done, length, advice),
            )

    @contextmanager
    def interruptible(self: Any) -> Iterator[None]:
        """End the training with a checkpoint on the first Ctrl-C in the block, and immediately on the second.

        This applies if Ctrl-C would raise `KeyboardInterrupt`: in the main thread of a script or a notebook.
        """
        own = threading.current_thread() is threading.main_thread() and self.strategy.world_size == 1
        if not own or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            yield
            return

        def first(signum: int, frame: FrameType | None) -> None:
            self.interrupt()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            log.warning("Interrupted: training stops after this iteration. Interrupt again to stop immediately.")

        signal.signal(signal.SIGINT, first)
        try:
            yield
        finally:
            if signal.getsignal(signal.SIGINT) is first:
                signal.signal(signal.SIGINT, signal.default_int_handler)
