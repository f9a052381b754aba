"""Text data for language models, as windows of characters."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainyard.checks import existing_file, integer
from trainyard.data.array_data import ArrayData
from trainyard.data.base import SPLITS
from trainyard.data.split import fractions
from trainyard.data.tensor_loader import TensorLoader
from trainyard.errors import ConfigError
from trainyard.rng import generator


class Text(ArrayData):
    """Characters of a text file, for next-character prediction.

    A batch is `(tokens, next_tokens)`, int64 `[B, T]` each, T the context length: `next_tokens` is `tokens` shifted by
    one character. The text is divided by position: training, then validation, then test. A training epoch divides the
    training part into windows that start every `stride` characters, from an offset that is drawn for each epoch. The
    order of the windows is shuffled. Validation and test windows do not overlap.

    Args:
        path: a UTF-8 file. Default: the help topics of Python (`pydoc_data.topics`), about 460 000 characters, which
            differ a little between versions of Python.
        context_length: T, in characters.
        stride: the number of characters from the start of one training window to the start of the next. Default: the
            context length.
        val_fraction, test_fraction: fractions of the characters; 0: the split does not exist.
        batch_size, eval_batch_size, drop_last: see `ArrayData`. The default of `eval_batch_size` is `batch_size`,
            because a window contains many tokens.

    Attributes:
        vocab: the characters of the entire text, sorted; token i is `vocab[i]`.

    Raises:
        ConfigError: the file does not exist or is not UTF-8 text, or a value is invalid.
    """

    def __init__(
        self,
        path: str | None = None,
        context_length: int = 128,
        stride: int | None = None,
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
        shares = fractions(val_fraction, test_fraction)
        text = _python_topics() if path is None else _read(path)
        self.vocab = "".join(sorted(set(text)))
        self._codes = _code_points(self.vocab)
        tokens = self.encode(text)
        # A byte a character where the vocabulary allows; a batch widens what it gathers.
        tokens = tokens.to(torch.uint8 if len(self.vocab) <= 256 else torch.int32)

        sizes = {split: round(len(tokens) * share) for split, share in shares.items()}
        sizes["train"] = len(tokens) - sum(sizes.values())
        sources: dict[str, tuple[Tensor]] = {}
        first = 0
        for split in SPLITS:
            if split == "train" or shares[split]:
                check_part(split, sizes[split], self.context_length, "characters", shares, {"train": path})
                sources[split] = (tokens[first : first + sizes[split]],)
            first += sizes[split]
        super().__init__(
            sources,
            {"vocab_size": len(self.vocab), "context_length": self.context_length},
            batch_size=batch_size,
            eval_batch_size=batch_size if eval_batch_size is None else eval_batch_size,
            drop_last=drop_last,
        )

    def encode(self, text: str) -> Tensor:
        """Return the tokens of `text`, int64 `[len(text)]`.

        Raises:
            ValueError: a character is not in the vocabulary.
        """
        codes = _code_points(text)
        tokens = np.searchsorted(self._codes, codes).clip(max=len(self._codes) - 1)
        if (unknown := self._codes[tokens] != codes).any():
            raise ValueError(f"The character {text[int(unknown.argmax())]!r} is not in the vocabulary.")
        return torch.from_numpy(tokens)

    def decode(self, tokens: Tensor) -> str:
        """Return the text of `tokens`, integers `[N]`."""
        return "".join(self.vocab[token] for token in tokens.tolist())

    def tensor_loader(self, split: str, *, seed: int, device: torch.device) -> TensorLoader:
        """Return the loader of `split`'s windows."""
        (tokens,) = self.resident(split, device)
        batch_size, shuffle, drop_last = self._batching(split)
        return WindowLoader(
            tokens,
            self.context_length,
            self.stride if split == "train" else self.context_length,
            batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            seed=seed,
            device=device,
        )

    def baselines(self, split: str) -> dict[str, float]:
        """Return `{"bigram_loss": ...}`; see `bigram_loss`."""
        return {"bigram_loss": self.bigram_loss(split)}

    def bigram_loss(self, split: str) -> float:
        """Return the cross-entropy, in nats per character, of predictions from only the previous character.

        The model is the table of pairs in the training part, with one added to every count (Laplace smoothing). It is
        evaluated on the targets of the loader of `split`; for "train", whose windows differ between epochs, on every
        character except the first.
        """
        train, judged = (self.resident(name, torch.device("cpu"))[0].numpy() for name in ("train", split))
        if split != "train":
            judged = judged[: (len(judged) - 1) // self.context_length * self.context_length + 1]
        size = len(self.vocab)
        # Only the pairs that occur: for a large vocabulary the whole table would not fit.
        known, counts = np.unique(_pairs(train, size), return_counts=True)
        wanted, weights = np.unique(_pairs(judged, size), return_counts=True)
        at = np.searchsorted(known, wanted).clip(max=len(known) - 1)
        seen = np.where(known[at] == wanted, counts[at], 0)
        firsts = np.bincount(train[:-1], minlength=size)[wanted // size]
        return float(np.average(np.log(firsts + size) - np.log(seen + 1), weights=weights))


class WindowLoader(TensorLoader):
    """Windows of `length + 1` tokens; a batch is `(tokens, next_tokens)`, int64 `[B, length]` each.

    Args:
        tokens: `[N]` integers.
        length: T, less than N.
        stride: the number of tokens from the start of one window to the start of the next. A shuffled epoch starts at
            its own offset in `0..stride-1`. The number of windows is the same for every offset.
        batch_size, shuffle, drop_last, seed, device: see `TensorLoader`.
    """

    def __init__(
        self,
        tokens: Tensor,
        length: int,
        stride: int,
        batch_size: int,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        starts = len(tokens) - length
        self.stride = min(stride, starts)
        # Shuffled, a window may start anywhere, as `order` gives; else row i is the i-th window. Both are views.
        windows = tokens.to(device).unfold(0, length + 1, 1 if shuffle else self.stride)
        super().__init__(
            (windows,),
            batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            seed=seed,
            device=device,
            rows=starts // self.stride if shuffle else None,
        )

    def order(self, epoch: int) -> Tensor:
        """Return the positions at which the windows of a shuffled epoch start, int64 `[rows]`."""
        phase = int(generator(self.seed, "phase", epoch).integers(self.stride))
        return super().order(epoch).mul_(self.stride).add_(phase)

    def from_rows(self, rows: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return windows as tokens and next tokens."""
        (windows,) = rows
        # Two copies rather than two views of one, so that both are contiguous: models and losses call .view on them.
        return (
            windows[:, :-1].to(torch.int64, memory_format=torch.contiguous_format),
            windows[:, 1:].to(torch.int64, memory_format=torch.contiguous_format),
        )


def _python_topics() -> str:
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def check_part(
    split: str, size: int, context_length: int, unit: str, shares: Mapping[str, float], files: Mapping[str, str | None]
) -> None:
    """Check that a part of a text has a window and the token after it.

    Args:
        split: the part.
        size: its tokens.
        context_length: the tokens of a window.
        unit: what the tokens are.
        shares: the fractions of the parts of the training file.
        files: the file of each part that has its own, with the training file.

    Raises:
        ConfigError: it is too short. A part without any window is an error of its file or its fraction.
    """
    if size > context_length:
        return
    if size > 1:
        hint = "" if split in files else f"A larger data.{split}_fraction makes this part longer."
        accepted = f"less than {size}, the number of {unit} in the {split} part"
        raise ConfigError("context_length", context_length, accepted, hint=hint)
    too_short = f"the {split} part has {size} {unit.removesuffix('s') if size == 1 else unit}"
    if split not in files:
        accepted = f"0 (no {split} part) or a fraction with at least 2 {unit}; {too_short}"
        raise ConfigError(f"{split}_fraction", shares[split], accepted)
    key = "path" if split == "train" else f"{split}_path"
    raise ConfigError(key, files[split], f"a file with more {unit}: each part needs at least 2, and {too_short}")


def _read(path: str) -> str:
    file = existing_file("path", path, other="null")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError("path", str(path), "a UTF-8 text file", hint=f"Decoding failed: {error}.") from error
    if not text:
        raise ConfigError("path", str(path), "a text file that is not empty")
    return text


def _code_points(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def _pairs(tokens: npt.NDArray[np.integer], size: int) -> npt.NDArray[np.int64]:
    """Return the number of each pair of neighbors, `first * size + second`."""
    return tokens[:-1].astype(np.int64) * size + tokens[1:]
