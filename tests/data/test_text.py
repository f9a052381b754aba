"""Text: vocabulary, windows, baseline."""

import math
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainyard.data import Text, WindowLoader
from trainyard.data.lengths import samples_hint
from trainyard.errors import ConfigError

CPU = torch.device("cpu")
SAMPLE = "The quick brown fox jumps over the lazy dog; naïve cafés, 東京.\n" * 40


@pytest.fixture
def sample(tmp_path: Path) -> Any:
    path = tmp_path / "sample.txt"
    path.write_text(SAMPLE, encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def topics() -> Any:
    return Text()


def joined(data: Any, split: Any) -> Any:
    return data.decode(data.sources[split][0])


def test_the_default_text_is_pythons_help(topics: Any) -> None:
    text = "".join(joined(topics, split) for split in topics.splits)
    assert len(text) > 300_000
    assert 'The "assert" statement' in text
    assert topics.vocab == "".join(sorted(set(text)))
    assert topics.spec == {"vocab_size": len(topics.vocab), "context_length": 128}
    assert Text().vocab == topics.vocab


def test_a_file_is_cut_by_position(sample: Any) -> None:
    data = Text(sample, context_length=16, val_fraction=0.1, test_fraction=0.2)
    assert [len(data.sources[split][0]) for split in data.splits] == [
        len(SAMPLE) - round(0.1 * len(SAMPLE)) - round(0.2 * len(SAMPLE)),
        round(0.1 * len(SAMPLE)),
        round(0.2 * len(SAMPLE)),
    ]
    assert "".join(joined(data, split) for split in ("train", "val", "test")) == SAMPLE


def test_encode_and_decode_are_inverse(sample: Any) -> None:
    data = Text(sample, context_length=16)
    tokens = data.encode("naïve 東京")
    assert tokens.dtype == torch.int64
    assert data.decode(tokens) == "naïve 東京"
    assert data.decode(torch.arange(len(data.vocab))) == data.vocab
    for unknown in ("quick!", "\uffff", "\x00"):
        with pytest.raises(ValueError, match="is not in the vocabulary"):
            data.encode(unknown)


def test_batches_are_the_text_and_the_next_character(topics: Any) -> None:
    loader = topics.loader("train", seed=0, device=CPU)
    text = joined(topics, "train")
    tokens, following = next(loader.batches(0))
    assert tokens.shape == following.shape == (32, 128)
    assert tokens.dtype == following.dtype == torch.int64
    assert tokens.is_contiguous()
    assert following.is_contiguous()
    assert torch.equal(tokens[:, 1:], following[:, :-1])
    for window, after in zip(tokens[:5], following[:5], strict=True):
        assert topics.decode(window) + topics.decode(after[-1:]) in text


def test_evaluation_windows_lie_side_by_side(sample: Any) -> None:
    data = Text(sample, context_length=10, val_fraction=0.2, batch_size=7)
    loader = data.loader("val", seed=0, device=CPU)
    text = joined(data, "val")
    windows = [data.decode(row) for tokens, _ in loader.batches(3) for row in tokens]
    assert "".join(windows) == text[: (len(text) - 1) // 10 * 10]
    after = "".join(data.decode(row) for _, following in loader.batches() for row in following)
    assert after == text[1 : 1 + len(after)]
    assert samples_hint(loader) == len(windows)


@given(
    n=st.integers(2, 300),
    length=st.integers(1, 40),
    stride=st.integers(1, 60),
    batch_size=st.integers(1, 30),
    epoch=st.integers(0, 50),
    data=st.data(),
)
def test_training_windows(n: int, length: int, stride: int, batch_size: int, epoch: int, data: st.DataObject) -> None:
    length = min(length, n - 1)
    loader = WindowLoader(torch.arange(n), length, stride, batch_size, shuffle=True, seed=3)
    whole = list(loader.batches(epoch))
    assert len(whole) == len(loader)
    starts = sorted(int(row[0]) for tokens, _ in whole for row in tokens)
    assert len(starts) == loader.num_samples >= 1
    assert starts[0] < stride
    assert starts[-1] + length < n
    assert all(after - before == min(stride, n - length) for before, after in pairwise(starts))
    for tokens, following in whole:
        assert torch.equal(tokens, tokens[:, :1] + torch.arange(length))
        assert torch.equal(following, tokens + 1)
    start = data.draw(st.integers(0, len(whole)))
    for (tokens, _), (expected, _) in zip(loader.batches(epoch, start), whole[start:], strict=True):
        assert torch.equal(tokens, expected)


def test_every_phase_and_order_comes_up() -> None:
    loader = WindowLoader(torch.arange(103), 10, 8, 100, shuffle=True)
    first = [next(loader.batches(epoch))[0][:, 0] for epoch in range(100)]
    assert {int(starts.min()) for starts in first} == set(range(8))
    assert len({tuple(starts.tolist()) for starts in first}) > 90


def test_large_vocabularies_are_not_cut_to_a_byte(tmp_path: Path) -> None:
    characters = "".join(chr(0x4E00 + index) for index in range(700))
    (tmp_path / "large.txt").write_text(characters * 3, encoding="utf-8")
    data = Text(str(tmp_path / "large.txt"), context_length=8)
    assert data.spec["vocab_size"] == 700
    assert "".join(joined(data, split) for split in ("train", "val", "test")) == characters * 3
    assert math.isfinite(data.bigram_loss("val"))


def slow_bigram_loss(train: Any, pairs: Any, vocab: Any) -> Any:
    counts, firsts = Counter(pairwise(train)), Counter(train[:-1])
    losses = [-math.log((counts[a, b] + 1) / (firsts[a] + len(vocab))) for a, b in pairs]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("split", ["val", "test"])
def test_bigram_loss_agrees_with_counting_over_the_batches(sample: Any, split: str) -> None:
    data = Text(sample, context_length=13, val_fraction=0.2, test_fraction=0.11, batch_size=4)
    pairs = [
        pair
        for tokens, following in data.loader(split, seed=0, device=CPU).batches()
        for row, after in zip(tokens, following, strict=True)
        for pair in zip(data.decode(row), data.decode(after), strict=True)
    ]
    expected = slow_bigram_loss(joined(data, "train"), pairs, data.vocab)
    assert data.baselines(split) == {"bigram_loss": pytest.approx(expected, rel=1e-12)}


def test_bigram_loss_of_the_training_text(sample: Any) -> None:
    data = Text(sample, context_length=13)
    train = joined(data, "train")
    expected = slow_bigram_loss(train, list(pairwise(train)), data.vocab)
    assert data.bigram_loss("train") == pytest.approx(expected, rel=1e-12)


def test_bigram_loss_of_the_default_text_is_plausible(topics: Any) -> None:
    assert 1.5 < topics.bigram_loss("val") < math.log(len(topics.vocab)) - 1


def test_a_missing_file_offers_the_nearest(sample: Any) -> None:
    with pytest.raises(ConfigError, match=r"Did you mean '.*sample\.txt'") as caught:
        Text(sample.replace("sample", "smaple"))
    assert caught.value.key == "path"
    with pytest.raises(ConfigError, match=r"The folder .* does not exist"):
        Text(sample + "/nowhere/a.txt")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("context_length", 0),
        ("context_length", 100_000),
        ("stride", 0),
        ("stride", 1.5),
        ("batch_size", 0),
        ("eval_batch_size", -1),
        ("val_fraction", 1),
        ("path", 3),
        ("path", ""),
    ],
)
def test_bad_options_are_refused(sample: Any, option: str, value: float | str) -> None:
    with pytest.raises(ConfigError) as caught:
        Text(**{"path": sample, "context_length": 8, option: value})
    assert caught.value.key == option


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(b"\x89PNG\xff\xfe")
    (tmp_path / "empty.txt").write_text("")
    for name, match in (("image.png", "UTF-8"), ("empty.txt", "not empty")):
        with pytest.raises(ConfigError, match=match):
            Text(str(tmp_path / name))


def test_a_split_shorter_than_a_window_is_refused(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("abcdefgh" * 20)
    with pytest.raises(ConfigError, match="in the val part"):
        Text(str(tmp_path / "short.txt"), context_length=8)
    assert Text(str(tmp_path / "short.txt"), context_length=8, val_fraction=0, test_fraction=0).splits == ("train",)


@pytest.mark.parametrize(
    ("size", "fractions", "key", "message"),
    [
        (
            20,
            {"val_fraction": 0.01},
            "val_fraction",
            r"0 \(no val part\) or a fraction .* 2 characters; .* has 0 charac",
        ),
        (20, {"val_fraction": 0.1}, "test_fraction", r"0 \(no test part\) or .* 2 characters; .* has 1 character\."),
        (20, {"val_fraction": 0.5, "test_fraction": 0.45}, "path", "a file with more char.* the train part has 1 char"),
        (1, {"val_fraction": 0, "test_fraction": 0}, "path", "a file with more char.* the train part has 1 character"),
    ],
)
def test_a_part_without_a_window_is_an_error_of_what_determines_it(
    tmp_path: Path, size: int, fractions: dict[str, float], key: str, message: str
) -> None:
    (tmp_path / "short.txt").write_text(("abcdefghij" * 2)[:size])
    with pytest.raises(ConfigError, match=message) as caught:
        Text(str(tmp_path / "short.txt"), context_length=1, **fractions)
    assert caught.value.key == key
