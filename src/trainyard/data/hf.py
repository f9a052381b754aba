"""Data sets of Hugging Face's `datasets`, from disk or from memory, as named tensors."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainyard.checks import integer, is_file, is_folder, neighbors
from trainyard.data.array_data import ArrayData
from trainyard.data.arrays import REGRESSION_LOSS
from trainyard.data.split import check_folds, fold_of, fractions, split_rows
from trainyard.errors import ConfigError, FindingError, listed, quoted
from trainyard.models.table_encoder import row_name, unfit, what_is

log = logging.getLogger(__name__)

SPLIT_NAMES = {"train": "train", "validation": "val", "val": "val", "dev": "val", "test": "test"}
_WORDS = {"train": "training", "val": "validation", "test": "test"}
"""Names of the splits in messages."""
TARGET = "labels"
"""Name of the target in a batch, as models of transformers call it."""
_TOKENIZER = (
    "For example: {_target_: transformers.AutoTokenizer.from_pretrained, pretrained_model_name_or_path: …}. "
    "{_target_: trainyard.data.BytePairs} trains a tokenizer on the training texts."
)
_EXCLUDE = "To exclude the column, name the columns to use: data.columns=[…]."
Columns = Mapping[str, Any]


class HuggingFace(ArrayData):
    """A `datasets.Dataset` or `DatasetDict`, with tokenized text.

    A batch is a dict: the tokenizer's outputs (`input_ids`, `attention_mask`, ...), int64 `[B, T]`, padded or truncated
    to `max_length`; other columns of numbers or of arrays with the same shape, under their names; and the target as
    `labels`, int64 `[B]` for classes, float32 for regression. All data is in memory, on the training device.

    Splits `validation` (or `dev`) and `test` of a `DatasetDict` are used unchanged; missing splits are drawn from
    `train`, stratified by class. A split whose labels are all -1, as in the test sets of GLUE, is skipped with a
    warning.

    Args:
        path: a folder written by `save_to_disk`, instead of `dataset`.
        dataset: the data set, or a `_target_` that returns it, such as `datasets.load_dataset`; or a mapping of columns
            by name, or of splits to such mappings.
        text: the column of texts, or two columns (sentence pairs); None: no texts.
        target: the column to predict; integers and strings are classes, floats are regression targets; None: no target.
        columns: additional input columns; None: all columns of the training split that contain numbers; []: no columns.
        tokenizer: called as `tokenizer(texts, padding="max_length", truncation=True, max_length=...)`, returns lists by
            name: `{_target_: transformers.AutoTokenizer.from_pretrained, pretrained_model_name_or_path: ...}`. Or an
            object whose `fit(texts)` trains a tokenizer on the training texts: `{_target_: trainyard.data.BytePairs}`.
        max_length: T, in tokens.
        val_fraction, test_fraction, split_seed, folds, fold: see `Arrays`.
        batch_size, eval_batch_size, drop_last: see `ArrayData`.

    Attributes:
        classes: the name of each class; empty without classes.
        tokenizer: the tokenizer.

    Raises:
        ConfigError: `datasets` is not installed, a folder or column does not exist, the data set is a stream, a
            split has no rows, texts have no tokenizer, or another value is invalid.
    """

    def __init__(
        self,
        path: str | None = None,
        dataset: Any = None,
        text: str | Sequence[str] | None = "text",
        target: str | None = "label",
        columns: Sequence[str] | None = None,
        tokenizer: Any = None,
        max_length: int = 128,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        split_seed: int = 0,
        folds: int | None = None,
        fold: int = 0,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        drop_last: bool = False,
    ) -> None:
        self.max_length = integer("max_length", max_length, at_least=1)
        shares, chosen_fold = fractions(val_fraction, test_fraction), fold_of(folds, fold)
        if (path is None) == (dataset is None):
            if path is not None:
                raise ConfigError("path", path, "null, because data.dataset is set")
            hint = "Otherwise, set data.dataset, for example to {_target_: datasets.load_dataset, path: …}."
            raise ConfigError("path", path, "a folder written by save_to_disk", hint=hint)
        if not (tokenizer is None or callable(tokenizer) or hasattr(tokenizer, "fit")):
            raise ConfigError("tokenizer", tokenizer, "a tokenizer, or a `_target_` that builds one", hint=_TOKENIZER)
        self.tokenizer = tokenizer
        self.classes: list[Any] = []
        key = "dataset" if path is None else "path"
        parts = _labelled(_parts(key, dataset if path is None else _from_disk(path)), target)
        check_folds(folds, parts)
        texts = [] if text is None else [text] if isinstance(text, str) else list(text)
        train = parts["train"]
        for argument, names in (
            ("text", texts),
            ("target", [] if target is None else [target]),
            ("columns", columns or []),
        ):
            for name in names:
                if name not in train:
                    held = f"one of the columns {', '.join(train)}"
                    held += ", or null" if argument != "columns" and len(names) == 1 else ""
                    raise ConfigError(argument, name, held, options=list(train))
        samples = {split: _rows(key, split, part) for split, part in parts.items()}
        targets = {} if target is None else self._targets(parts, target)
        labels = targets.get("train")
        drawn = {split: share for split, share in shares.items() if split not in parts}
        stratified = labels.numpy() if labels is not None and self.classes else None
        rows = split_rows(samples["train"], drawn, split_seed, stratified, fold=chosen_fold)
        if texts and hasattr(self.tokenizer, "fit"):
            read = [train[name] for name in texts]
            self.tokenizer = self.tokenizer.fit(str(column[row]) for column in read for row in rows["train"])

        inputs = self._input_columns(train, texts, target, columns)
        tensors = {split: self._inputs(split, part, texts, inputs) for split, part in parts.items()}
        for split, values in targets.items():
            tensors[split][TARGET] = values
        whole = tensors["train"]
        for split, own in rows.items():
            tensors[split] = {name: values[own] for name, values in whole.items()}
        spec: dict[str, Any] = {"num_classes": len(self.classes)} if self.classes else {}
        if labels is not None and not self.classes:
            spec = {"out_features": 1 if labels.ndim == 1 else labels.shape[1], "loss": dict(REGRESSION_LOSS)}
        if self.tokenizer is not None and texts:
            size = len(self.tokenizer) if hasattr(self.tokenizer, "__len__") else None
            known = max(int(part["input_ids"].max()) for part in tensors.values()) + 1 if size is None else size
            spec |= {"vocab_size": known, "context_length": self.max_length}
        super().__init__(tensors, spec, batch_size=batch_size, eval_batch_size=eval_batch_size, drop_last=drop_last)

    def _input_columns(
        self, train: Columns, texts: Sequence[str], target: str | None, columns: Sequence[str] | None
    ) -> list[str]:
        """Return the names of the input columns of numbers."""
        if texts and self.tokenizer is None:
            hint = (
                f"{_TOKENIZER} To exclude the column, set data.text=null and name the input columns: data.columns=[…]."
            )
            accepted = f"a tokenizer, because data.text selects the column {texts[0]!r}"
            raise ConfigError("tokenizer", None, accepted, hint=hint)
        found: list[str] = []
        for name in [name for name in train if name not in (*texts, target)] if columns is None else columns:
            if not isinstance(_first(train, name), str):
                found.append(name)
            elif columns is not None or not texts:
                hint = (
                    f"Set data.text to this column, and data.tokenizer to a tokenizer. {_EXCLUDE}"
                    if columns is None
                    else "Remove the column from data.columns. To use a column of texts, set data.text to it, and "
                    "data.tokenizer to a tokenizer."
                )
                raise ConfigError("columns", name, "columns of numbers, but this column contains text", hint=hint)
        if not found and not texts:
            given = None if columns is None else list(columns)
            raise ConfigError("columns", given, "at least one input column, or a text column in data.text")
        return found

    def _inputs(self, split: str, part: Columns, texts: Sequence[str], columns: Sequence[str]) -> dict[str, Tensor]:
        """Return the inputs of a split by name."""
        for key, names in (("text", texts), ("columns", columns)):
            for name in names:
                if name not in part:
                    held = ", ".join(part)
                    accepted = f"a column of every split; the columns of the {_WORDS[split]} split are {held}"
                    raise ConfigError(key, name, accepted, hint=_EXCLUDE if key == "columns" else "")
        found: dict[str, Tensor] = {}
        if texts:
            given = [[str(value) for value in part[name]] for name in texts]
            made = self.tokenizer(*given, padding="max_length", truncation=True, max_length=self.max_length)
            for name, values in made.items():
                found[name] = torch.from_numpy(_array("tokenizer", name, values, split).astype(np.int64))
        for name in columns:
            array = _array("columns", name, part[name], split)
            kind = np.float32 if array.dtype.kind == "f" else np.int64
            found[name] = torch.from_numpy(np.ascontiguousarray(array, dtype=kind))
        return found

    def _targets(self, parts: Mapping[str, Columns], target: str) -> dict[str, Tensor]:
        given = {split: part for split, part in parts.items() if target in part}
        values = {split: _array("target", target, part[target], split) for split, part in given.items()}
        every = np.concatenate(list(values.values()))
        if every.dtype.kind == "f":
            return {split: torch.from_numpy(own.astype(np.float32)) for split, own in values.items()}
        if every.ndim != 1:
            raise ConfigError(
                "target", target, f"one class per sample, or floats; this column has the shape {list(every.shape)}"
            )
        classes, numbers = np.unique(every, return_inverse=True)
        names = _names(parts["train"], target)
        self.classes = names or classes.tolist()
        if names:
            for split, own in values.items():
                if len(wrong := own[(own < 0) | (own >= len(names))]):
                    accepted = f"labels from 0 to {len(names) - 1} in the {_WORDS[split]} split"
                    raise ConfigError("target", wrong[0].item(), accepted)
            numbers = every  # the data set's own numbers, some of which may not occur
        ends = np.cumsum([len(own) for own in values.values()])[:-1]
        return {
            split: torch.from_numpy(own.astype(np.int64))
            for split, own in zip(values, np.split(numbers, ends), strict=True)
        }


class _Part(Mapping[str, Any]):
    """Columns of a `datasets.Dataset`."""

    def __init__(self, given: Any) -> None:
        self.given = given.with_format(None) if hasattr(given, "with_format") else given

    def __getitem__(self, name: str) -> Any:
        return self.given[name][:]

    def __iter__(self) -> Any:
        return iter(self.given.column_names)

    def __len__(self) -> int:
        return len(self.given.column_names)


def _parts(key: str, given: Any) -> dict[str, Columns]:
    """Return the columns of each split; a data set without splits is "train"."""
    splits = given if isinstance(given, Mapping) and all(map(_is_set, given.values())) and given else {"train": given}
    parts: dict[str, Columns] = {}
    for name, part in splits.items():
        if not _is_set(part):
            accepted = (
                "a datasets.Dataset, a mapping of column names to lists or NumPy arrays, a mapping of splits to one of "
                "these (such as a DatasetDict), or a `_target_` that returns one"
            )
            hint = "For example: {_target_: datasets.load_dataset, path: …}." if isinstance(part, str) else ""
            raise ConfigError(key, part, accepted, hint=hint)
        if name in SPLIT_NAMES:
            if not isinstance(part, Mapping) and not hasattr(part, "__len__"):
                hint = "With datasets.load_dataset, leave out streaming=true." if key == "dataset" else ""
                accepted = "a data set that is in memory or on disk: a stream has no length, and is read only in order"
                raise ConfigError(key, type(part).__name__, accepted, hint=hint)
            parts[SPLIT_NAMES[name]] = part if isinstance(part, Mapping) else _Part(part)
    if "train" not in parts:
        raise FindingError(key, f"the splits are {listed(splits)}", "a data set with a split named train")
    return parts


def _labelled(parts: Mapping[str, Columns], target: str | None) -> dict[str, Columns]:
    """Return the splits, without those for validation and test whose labels are all -1."""
    kept = dict(parts)
    for split in [split for split in parts if split != "train" and target in parts[split]]:
        if _no_labels(parts[split][str(target)]):
            log.warning("data: the labels of the %s split are all -1: the split is skipped.", _WORDS[split])
            del kept[split]
    return kept


def _no_labels(values: Any) -> bool:
    return len(values) > 0 and all(isinstance(each, int | np.integer) and each == -1 for each in values)


def _rows(key: str, split: str, part: Columns) -> int:
    """Return the number of rows of a split, which is at least 1."""
    lengths = {name: len(part.given if isinstance(part, _Part) else part[name]) for name in part}
    if len({*lengths.values()}) > 1:
        shown = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise FindingError(key, f"the lengths in the {_WORDS[split]} split are: {shown}", "columns of equal lengths")
    if not any(lengths.values()):
        raise FindingError(key, f"the {_WORDS[split]} split has no rows", "at least one row in each split")
    return next(iter(lengths.values()))


def _first(part: Columns, name: str) -> Any:
    """Return the first value of a column."""
    return part.given[0][name] if isinstance(part, _Part) else part[name][0]


def _is_set(given: Any) -> bool:
    """Return whether this is a data set: with columns, or a mapping of them."""
    if hasattr(given, "column_names") and not isinstance(given, Mapping):
        return True
    return (
        isinstance(given, Mapping)
        and bool(given)
        and all(isinstance(each, list | np.ndarray) for each in given.values())
    )


def _names(part: Columns, target: str) -> list[str] | None:
    """Return the names that the data set has for its classes (`ClassLabel`)."""
    features = getattr(getattr(part, "given", None), "features", None)
    names = getattr(features[target], "names", None) if features else None
    return list(names) if names else None


def _from_disk(path: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        hint = "Install it with: pip install 'trainyard[hf]'"
        raise ConfigError(
            "path",
            path,
            "null, with the data in data.dataset, because the package datasets is not installed",
            hint=hint,
        ) from error
    folder = Path(path).expanduser()
    if not is_folder(folder):
        whole, others = str(folder.absolute()), neighbors(path, is_folder)
        hint = f"{quoted(whole)} is a file." if is_file(folder) else f"The folder {quoted(whole)} does not exist."
        raise ConfigError("path", path, "a folder written by save_to_disk", options=others, hint=hint)
    try:
        return datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        reason = f"An entry {error} is missing in its files" if isinstance(error, KeyError) else str(error).rstrip(".")
        hint = f"Reading the folder failed: {reason}."
        raise ConfigError("path", path, "a folder written by save_to_disk", hint=hint) from error


def _array(key: str, name: str, values: Any, split: str) -> npt.NDArray[Any]:
    try:
        array = np.asarray(values)
    except ValueError:  # rows of several lengths
        array = np.asarray(None)
    if array.dtype.kind not in "biufU" or (array.dtype.kind == "U" and key != "target"):
        if key == "tokenizer":
            accepted = "a tokenizer whose outputs are lists of integers, padded and truncated to max_length"
            raise ConfigError(key, name, accepted)
        kinds = "numbers or strings" if key == "target" else "numbers"
        accepted = f"a column of {kinds}, or of lists of numbers of equal length, without missing values"
        raise ConfigError(key, name, accepted, hint=_EXCLUDE if key == "columns" else "")
    if (place := unfit(array)) is not None:
        where = f"{row_name(place[0])} of this column in the {_WORDS[split]} split"
        accepted = f"a column of finite numbers within the range of float32; {where} {what_is(array[place])}"
        raise ConfigError(key, name, accepted, hint=_EXCLUDE if key == "columns" else "")
    return array
