"""What an error shows of what was given."""

from __future__ import annotations

import pytest
import torch

from trainyard.errors import ConfigError, UnknownMetricError, first_line, listed, nearest, quoted, some


def test_of_tensors_the_shapes_are_shown() -> None:
    batches = [(torch.randn(64, 2), torch.zeros(64, dtype=torch.int64))] * 30
    said = str(ConfigError("data.train", batches, "a DataLoader"))
    assert "[(Tensor of shape [64, 2], Tensor of shape [64]), (" in said
    assert "\n" not in said
    assert len(said) < 300


def test_what_is_short_is_shown_whole() -> None:
    given = {"lr": [0.1, 0.2, 0.3, 0.4], "name": "x" * 50}
    assert str(ConfigError("optim", given, "numbers")) == f"optim: {given!r} is invalid. Expected numbers."


def test_the_first_names_and_the_number_of_the_others() -> None:
    assert [some("abc"[:count], 2) for count in range(4)] == ["", "a", "a, b", "a, b and 1 more"]


def test_all_names_of_a_sentence() -> None:
    assert [listed(each) for each in ([3], [3, 4], "abc")] == ["3", "3 and 4", "a, b and c"]


def test_null_is_no_misspelled_name() -> None:
    assert "Did you mean" not in str(ConfigError("schedule", None, "an option", options=["constant", "cosine"]))
    assert str(ConfigError("tracker", None, "an option", options=["mlflow", "none"])).endswith("Did you mean 'none'?")


def test_the_nearest_name_may_differ_in_case() -> None:
    names = ["FashionMNIST", "MNIST", "mnist_plus", "Mnist"]
    assert nearest("FASHIONMNIST", names) == "FashionMNIST"
    assert nearest("mnist", ["EMNIST", "MNIST"]) == "MNIST"
    assert nearest("Mnist", names) == "Mnist"
    assert nearest("mnist_plu", names) == "mnist_plus"
    assert nearest("cifar", names) is None


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            RuntimeError("The CPU tensor is not pinned.\nCompile with TORCH_USE_CUDA_DSA."),
            "The CPU tensor is not pinned.",
        ),
        (RuntimeError("\n  Indented. \n"), "Indented."),
        (AssertionError(), "AssertionError"),
        (AssertionError(" \n"), "AssertionError"),
    ],
)
def test_the_first_line_of_an_error(error: Exception, line: str) -> None:
    assert first_line(error) == line
    assert first_line(error, "") == (line if line != "AssertionError" else "")


def test_texts_are_shown_as_the_user_wrote_them() -> None:
    given = {r"net\.(\d+)": [r"C:\data", ("a", "it's")], 1: r"\d"}
    shown = r"""{'net\.(\d+)': ['C:\data', ('a', "it's")], 1: '\d'}"""
    assert str(ConfigError("freeze", given, "patterns")) == f"freeze: {shown} is invalid. Expected patterns."
    assert str(ConfigError("freeze", r"\d+", "patterns")).startswith(r"freeze: '\d+' is invalid.")
    assert r"'C:\data\x'" in str(ConfigError("load_from", [r"C:\data\x"] * 100, "one path"))
    assert str(UnknownMetricError("objective", r"val\x", "None")).startswith(r"objective: No metric named 'val\x'.")
    assert str(ConfigError("path", r"a\b", "a file", options=[r"a\bc"])).endswith(r"Did you mean 'a\bc'?")


def test_only_control_characters_are_escaped() -> None:
    assert quoted("a\n\x1b[1m\\n é") == r"'a\n\x1b[1m\n é'"
    assert [quoted(text) for text in ("", "it's", 'a "b"')] == ["''", '"it\'s"', "'a \"b\"'"]


def test_a_list_that_contains_itself() -> None:
    given: list[object] = ["a"]
    given.append(given)
    assert "\n" not in str(ConfigError("data", given, "numbers"))
