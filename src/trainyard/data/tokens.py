"""Token IDs in a file that stays on disk, for language models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainyard.checks import choice, existing_file, integer
from trainyard.data.array_data import ArrayData
from trainyard.data.base import SPLITS
from trainyard.data.split import fractions
from trainyard.data.tensor_loader import TensorLoader
from trainyard.data.text import WindowLoader, check_part
from trainyard.errors import ConfigError, counted

DTYPES = ("uint8", "uint16", "int16", "int32", "uint32", "int64")


class Tokens(ArrayData):
    """Token IDs in a memory-mapped file; a batch reads only its windows.

    A batch is `(tokens, next_tokens)`, int64 `[B, T]` each, T the context length: `next_tokens` is `tokens` shifted by
    one token. A training epoch divides the training part into windows that start every `stride` tokens, from an offset
    that is drawn for each epoch. The order of the windows is shuffled. Validation and test windows do not overlap.

    Args:
        path: an `.npy` with one axis of integers, or a file that contains only numbers of `dtype`
            (`array.tofile(path)`).
        dtype: the type of the numbers in a file other than `.npy`.
        vocab_size: the number of different tokens; every token is below it. None: the largest token plus 1; the files
            are then read once to find it.
        context_length: T, in tokens.
        stride: the number of tokens from the start of one training window to the start of the next. Default: the
            context length.
        val_path, test_path: separate files for validation and test.
        val_fraction, test_fraction: fractions of the tokens for splits without a separate file, taken from the end; 0:
            the split does not exist.
        batch_size, eval_batch_size, drop_last: see `ArrayData`. The default of `eval_batch_size` is `batch_size`.

    Raises:
        ConfigError: a file does not exist or does not contain tokens, or a value is invalid.
    """

    def __init__(
        self,
        path: str,
        dtype: str = "uint16",
        vocab_size: int | None = None,
        context_length: int = 256,
        stride: int | None = None,
        val_path: str | None = None,
        test_path: str | None = None,
        val_fraction: float = 0.05,
        test_fraction: float = 0.05,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        drop_last: bool = False,
    ) -> None:
        self.context_length = integer("context_length", context_length, at_least=1)
        self.stride = (
            self.context_length
            if stride is None
            else integer("stride", stride, at_least=1, other="null for context_length")
        )
        choice("dtype", dtype, DTYPES)
        shares = fractions(val_fraction, test_fraction)
        parts = {"train": _mapped("path", path, dtype)}
        for split, given in (("val", val_path), ("test", test_path)):
            if given is not None:
                parts[split] = _mapped(f"{split}_path", given, dtype)
        if vocab_size is None:
            given_paths = {"train": ("path", path), "val": ("val_path", val_path), "test": ("test_path", test_path)}
            vocab_size = 1 + max(_largest(part, *given_paths[split]) for split, part in parts.items())
        integer("vocab_size", vocab_size, at_least=1, other="null for the largest token plus 1")

        whole, end = parts["train"], len(parts["train"])
        for split in ("test", "val"):
            if split not in parts and shares[split]:
                size = round(len(whole) * shares[split])
                parts[split], end = whole[end - size : end], end - size
        parts["train"] = whole[:end]
        files = {split: file for split, file in (("train", path), ("val", val_path), ("test", test_path)) if file}
        for split, part in parts.items():
            check_part(split, len(part), self.context_length, "tokens", shares, files)
        super().__init__(
            {split: (torch.from_numpy(parts[split]),) for split in SPLITS if split in parts},
            {"vocab_size": vocab_size, "context_length": self.context_length},
            batch_size=batch_size,
            eval_batch_size=batch_size if eval_batch_size is None else eval_batch_size,
            drop_last=drop_last,
        )

    def tensor_loader(self, split: str, *, seed: int, device: torch.device) -> TensorLoader:
        """Return the loader of `split`'s windows."""
        (tokens,) = self.resident(split, torch.device("cpu"))
        batch_size, shuffle, drop_last = self._batching(split)
        stride = self.stride if split == "train" else self.context_length
        return MappedLoader(
            tokens,
            self.context_length,
            stride,
            batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            seed=seed,
            to=device,
            vocab_size=self.spec["vocab_size"],
        )


class MappedLoader(WindowLoader):
    """Windows of tokens on disk, which are gathered on the host and then moved to the device.

    Args:
        tokens, length, stride, batch_size, shuffle, drop_last, seed: see `WindowLoader`.
        to: the device of the batches.
        vocab_size: the number of different tokens.
    """

    def __init__(
        self,
        tokens: Tensor,
        length: int,
        stride: int,
        batch_size: int,
        *,
        shuffle: bool,
        drop_last: bool,
        seed: int,
        to: torch.device,
        vocab_size: int,
    ) -> None:
        self.to = to
        self.vocab_size = vocab_size
        super().__init__(tokens, length, stride, batch_size, shuffle=shuffle, drop_last=drop_last, seed=seed)

    def gather(self, indices: Tensor | slice) -> tuple[Tensor, ...]:
        """Return the windows at `indices`, as tokens and next tokens.

        Raises:
            ConfigError: a token is not in `0..vocab_size-1`.
        """
        parts = super().gather(indices)
        for part in parts:
            smallest, largest = (int(bound) for bound in part.aminmax())
            if smallest < 0 or largest >= self.vocab_size:
                accepted = (
                    f"tokens of at least 0, but the data contains the token {smallest}"
                    if smallest < 0
                    else f"at least {largest + 1}, because the data contains the token {largest}"
                )
                raise ConfigError("vocab_size", self.vocab_size, accepted)
        return tuple(part.to(self.to) for part in parts)


def _largest(tokens: npt.NDArray[np.integer], key: str, path: str | None) -> int:
    """Return the largest token of a file, whose tokens must not be negative."""
    if tokens.dtype.kind == "i" and (smallest := int(tokens.min())) < 0:
        accepted = f"a file of tokens of at least 0, not {smallest}, read as {tokens.dtype}"
        raise ConfigError(key, path, accepted)
    return int(tokens.max())


def _mapped(key: str, path: str, dtype: str) -> npt.NDArray[np.integer]:
    """Return the memory-mapped tokens of a file, which is not changed ("c": copy on write)."""
    file: Path = existing_file(key, path, other="" if key == "path" else "null")
    if file.suffix.lower() == ".npy":
        try:
            tokens = np.lib.format.open_memmap(file, mode="c")
        except (ValueError, OSError) as error:
            hint = f"Reading the file failed: {str(error).rstrip('.')}."
            raise ConfigError(key, str(path), "a file of tokens in the .npy format", hint=hint) from error
        if tokens.ndim != 1 or tokens.dtype.name not in DTYPES:
            accepted = (
                f"a one-dimensional array of integers ({', '.join(DTYPES)}), not {tokens.dtype} {list(tokens.shape)}"
            )
            raise ConfigError(key, str(path), accepted)
        if not tokens.dtype.isnative:
            hint = "Convert it: numpy.save(path, tokens.astype(tokens.dtype.newbyteorder('=')))."
            raise ConfigError(
                key, str(path), f"tokens in the byte order of this machine, not {tokens.dtype}", hint=hint
            )
        if not tokens.size:
            raise ConfigError(key, str(path), "a file with at least one token", hint="The array is empty.")
        return tokens
    size, width = file.stat().st_size, np.dtype(dtype).itemsize
    if size % width or not size:
        hint = f"The file has {counted(size, 'byte')}."
        accepted = f"a file of numbers of {counted(width, 'byte')} each (data.dtype={dtype})"
        raise ConfigError(key, str(path), accepted, hint=hint)
    return np.memmap(file, dtype=dtype, mode="c")
