"""Predictions of the model of a run: `trainyard.load(run).predict(inputs)`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from trainyard.batch import joined, to_device
from trainyard.checks import choice, integer
from trainyard.errors import ConfigError, FindingError, TrainyardError
from trainyard.models.table_encoder import as_float32
from trainyard.run.record import BEST, CONFIG, load_model, predict
from trainyard.runner import checkpoint
from trainyard.runner.env import find_device
from trainyard.track import RunInfo, own, run_info
from trainyard.track.shipper.stored_model import is_run_id, stored_model

WHICH = ("best", "last")
EXPORTED = "model.safetensors"  # of `trainyard export`


def load(
    run: str | Path,
    *,
    which: str = "best",
    device: str | torch.device = "auto",
    uri: str | None = None,
    trust: bool = False,
) -> Predictor:
    """Return the model of a run, ready to predict.

    The model is built from the config in the run's directory. Its classes are imported from the same folders as in the
    run. The config can run any code, and so can a model in MLflow, which is unpickled. Load only models that you trust.

    Args:
        run: the run's directory, a folder of `trainyard export`, a checkpoint in the run's `checkpoints/`, or the ID of
            a run in MLflow (also `runs:/<ID>`).
        which: for a directory: `best`, the best checkpoint (or the last checkpoint if there is no best checkpoint), or
            `last`.
        device: the device for predictions; `auto` is CUDA if available.
        uri: the MLflow URI; None is `MLFLOW_TRACKING_URI`, or `mlflow.db` in the current folder.
        trust: accept a run in MLflow, or a directory that is not recognized as the user's own, such as a copy, a
            download, or a folder of `trainyard export`.

    Raises:
        ConfigError: the run, checkpoint or device does not exist, or the checkpoint is damaged.
        TrainyardError: the run is in MLflow or the directory is not the user's own, without `trust`; or the model of a
            run in MLflow cannot be loaded.

    Example:
        >>> model = load("outputs/mine")  # doctest: +SKIP
        >>> scores = model.predict(images, batch_size=256)  # doctest: +SKIP
    """
    choice("which", which, WHICH)
    place = find_device(str(device))
    path = Path(run)
    if not path.exists():
        if is_run_id(str(run)):
            return Predictor(stored_model(str(run), uri, trust=trust), place)
        accepted = (
            "the directory of a run, a checkpoint in it, a folder of `trainyard export`, or the ID of a run in MLflow"
        )
        raise ConfigError("run", str(run), accepted, hint="This file or folder does not exist.")
    sharded = path.suffix == ".pt" and not (path / CONFIG).exists()  # the checkpoint of a run with FSDP is a folder
    of_run = path.is_dir() and not sharded
    directory, file = (path, _checkpoint_in(path, which)) if of_run else (path.absolute().parent.parent, path)
    if not (directory / CONFIG).exists():
        accepted = (
            f"the directory of a run, with its {CONFIG}, a checkpoint in its checkpoints/, a folder of "
            "`trainyard export`, or the ID of a run in MLflow"
        )
        hint = f"A weights file does not define a model; the {CONFIG} of a run does."
        if of_run:
            hint = f"The directory has no {CONFIG}."
        raise ConfigError("run", str(run), accepted, hint=hint)
    if not (trust or own.is_own_directory(directory)):
        raise TrainyardError(
            f"{directory} is not recognized as the directory of your own run (it may be a copy, a download, or a "
            f"folder of `trainyard export`), and its {CONFIG} can run any code. Pass trust=True if you trust it."
        )
    if (directory / run_info.FILE).exists():
        sys.path += [folder for folder in RunInfo.read(directory).python_path if folder not in sys.path]
    return Predictor(load_model(directory.resolve(), file.resolve())[0], place)


class Predictor:
    """A model in evaluation mode that predicts in batches.

    Args:
        model: a model whose `forward` takes `mode`.
        device: the device for predictions.

    Attributes:
        model: the model, on the device.
    """

    def __init__(self, model: nn.Module, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()

    def predict(self, inputs: Any, batch_size: int = 64) -> Any:
        """Return the predictions for all samples, on the CPU. `data_preprocessor` is applied to the inputs.

        Args:
            inputs: an array or tensor `[N, ...]`; a mapping from names to arrays or tensors; a list of samples, such as
                images of different sizes; or a `DataLoader`, whose batches are used unchanged (also with targets).
            batch_size: samples at a time.

        Returns:
            The model's output for `N` samples, with the same structure: tensors are concatenated along their first
            axis, and lists (such as detections) are joined.

        Raises:
            ConfigError: there are no samples, the columns of a mapping have different lengths, or an input cannot be
                converted to a tensor.
        """
        batch_size = integer("batch_size", batch_size, at_least=1)
        batches = iter(inputs) if isinstance(inputs, DataLoader) else _batches(inputs, batch_size)
        with torch.inference_mode():
            found = [to_device(predict(self.model, to_device(batch, self.device)), _CPU) for batch in batches]
        if not found:
            raise ConfigError("inputs", inputs, "at least one sample")
        return joined(found)

    __call__ = predict


_CPU = torch.device("cpu")


def _batches(inputs: Any, size: int) -> Iterator[Any]:
    """Yield batches of inputs without targets; a list of samples of the same shape is stacked."""
    if isinstance(inputs, Mapping):
        columns = {name: _column(column) for name, column in inputs.items()}
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            found = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise FindingError("inputs", f"the numbers of samples are: {found}", "the same number for each name")
        for begin in range(0, next(iter(lengths.values()), 0), size):
            yield {name: column[begin : begin + size] for name, column in columns.items()}
    elif isinstance(inputs, list | tuple):
        samples = [_tensor(sample) for sample in inputs]
        for begin in range(0, len(samples), size):
            part = samples[begin : begin + size]
            alike = len({sample.shape for sample in samples}) == 1
            yield torch.stack(part) if alike else (part,)
    else:
        whole = _column(inputs)
        for begin in range(0, len(whole), size):
            yield whole[begin : begin + size]


def _column(value: Any) -> Tensor:
    """Return samples as a tensor `[N, ...]`."""
    found = _tensor(value)
    if np.isscalar(value) or not getattr(value, "ndim", 1):  # `_tensor` makes one sample of a number
        raise ConfigError("inputs", value, "samples along the first axis of an array or tensor, not a single number")
    return found


def _tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    try:
        array = np.asarray(value)
        return torch.from_numpy(np.ascontiguousarray(as_float32(array) if array.dtype == np.float64 else array))
    except (TypeError, ValueError) as error:
        accepted = "an array of numbers or a tensor, a mapping or a list of these, or a DataLoader"
        kind = f"ndarray of dtype {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
        raise ConfigError("inputs", kind, accepted) from error


def _checkpoint_in(directory: Path, which: str) -> Path:
    """Return the file of the best or the last checkpoint of a run."""
    folder = directory / "checkpoints"
    exported = directory / EXPORTED
    if exported.exists() and not folder.exists():
        return exported
    saved = checkpoint.read_last(folder)
    best = directory / BEST
    if which == "best" and best.exists():
        return best
    if not saved:
        raise ConfigError("run", str(directory), "the directory of a run with a checkpoint")
    return folder / saved[-1]
