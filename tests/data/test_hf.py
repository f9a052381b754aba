"""Data sets of Hugging Face: from memory as mappings of columns, and where `datasets` is installed as they are."""

import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from data_runs import resumes_to_the_bits, stack_follows_members, trained, training
from torch import Tensor, nn

from trainyard.data import BytePairs, HuggingFace, help_topics
from trainyard.errors import ConfigError

GOOD, BAD = ["fine", "great", "good", "lovely"], ["bad", "poor", "awful", "dull"]
RNG = np.random.default_rng(0)
LABELS = [int(label) for label in RNG.integers(0, 2, 120)]
TEXTS = [f"it was {RNG.choice((BAD, GOOD)[label])} and {RNG.choice((BAD, GOOD)[label])}" for label in LABELS]
COLUMNS = {"text": TEXTS, "label": LABELS, "stars": [float(2 * label) for label in LABELS]}
CPU = torch.device("cpu")


class Words:
    """A tokenizer of words, called as those of transformers are."""

    def __init__(self) -> None:
        self.known = {word: number for number, word in enumerate(sorted({*" ".join(TEXTS).split()}), 1)}

    def __len__(self) -> int:
        return len(self.known) + 1

    def __call__(self, texts: list[str], *, padding: str, truncation: bool, max_length: int) -> dict[str, Any]:
        rows = [[self.known[word] for word in text.split()][:max_length] for text in texts]
        ids = [row + [0] * (max_length - len(row)) for row in rows]
        return {"input_ids": ids, "attention_mask": [[int(token > 0) for token in row] for row in ids]}


class Bag(nn.Module):
    def __init__(self, vocab_size: int, num_classes: int) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(vocab_size, 8), nn.Linear(8, num_classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        weights = attention_mask.unsqueeze(-1).float()
        out: Tensor = self.head((self.embedding(input_ids) * weights).sum(1) / weights.sum(1))
        return out


MODEL = {
    "_target_": "trainyard.models.Supervised",
    "net": {"_target_": Bag, "vocab_size": "auto", "num_classes": "auto"},
}


def data(dataset: Any, **more: Any) -> dict[str, Any]:
    base = {"_target_": "trainyard.data.HuggingFace", "tokenizer": {"_target_": Words}, "columns": [], "max_length": 6}
    return base | {"dataset": dataset, "batch_size": 16} | more


class Given:
    """A `_target_` that gives the columns."""

    def __new__(cls) -> Any:
        return COLUMNS


def test_batches_are_dicts() -> None:
    found = HuggingFace(dataset=COLUMNS, tokenizer=Words(), max_length=5)
    assert found.spec == {"num_classes": 2, "vocab_size": len(Words()), "context_length": 5}
    batch = next(found.loader("train", seed=0, device=CPU).batches())
    shapes = {name: (list(values.shape), values.dtype) for name, values in batch.items()}
    assert shapes == {
        "input_ids": ([32, 5], torch.int64),
        "attention_mask": ([32, 5], torch.int64),
        "stars": ([32], torch.float32),
        "labels": ([32], torch.int64),
    }
    sources: dict[str, Any] = found.sources
    assert {split: len(source["labels"]) for split, source in sources.items()} == {
        "train": 96,
        "val": 12,
        "test": 12,
    }


class Fitted:
    """Makes the tokenizer from the texts that it is given."""

    def fit(self, texts: Iterable[str]) -> Words:
        self.texts = list(texts)
        return Words()


def test_a_tokenizer_is_made_of_the_training_texts() -> None:
    fitted = Fitted()
    found = HuggingFace(dataset=COLUMNS, tokenizer=fitted, max_length=5, columns=[])
    plain = HuggingFace(dataset=COLUMNS, tokenizer=Words(), max_length=5, columns=[])
    train: Any = found.sources["train"]
    for name, values in plain.sources["train"].items():
        assert torch.equal(values, train[name])
    own = [Words()([text], padding="", truncation=True, max_length=5)["input_ids"][0] for text in fitted.texts]
    assert torch.equal(torch.tensor(own), train["input_ids"])


def test_paragraphs_of_the_help_topics() -> None:
    found = help_topics(3)
    assert len({*found["label"]}) == 3
    assert len(found["text"]) == len(found["label"]) == len({*found["text"]}) > 100
    with pytest.raises(ConfigError, match="count: 1 is invalid"):
        help_topics(1)


def test_byte_pairs_of_texts() -> None:
    pytest.importorskip("transformers", reason="transformers is not installed (the extra hf has it)")
    tokenizer = BytePairs(300).fit(TEXTS)
    ids = tokenizer(["It was good", "dull"], padding="max_length", truncation=True, max_length=8)["input_ids"]
    assert [row[0] for row in ids] == [2, 2]
    assert ids[1].count(0) > 0
    assert tokenizer.decode(ids[0], skip_special_tokens=True).strip() == "it was good"
    assert BytePairs(300).fit(TEXTS).get_vocab() == tokenizer.get_vocab()
    with pytest.raises(ConfigError, match=r"vocab_size: 100 is invalid. Expected .* 261"):
        BytePairs(100)


def test_byte_pairs_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ConfigError, match=r"pip install 'trainyard\[hf\]'"):
        BytePairs()


def test_splits_of_its_own_texts_as_labels_and_regression() -> None:
    named = {"text": TEXTS, "label": ["good" if label else "bad" for label in LABELS]}
    found = HuggingFace(dataset={"train": named, "validation": named}, tokenizer=Words(), test_fraction=0)
    assert found.classes == ["bad", "good"]
    assert found.splits == ("train", "val")
    regression = HuggingFace(dataset=COLUMNS, tokenizer=Words(), target="stars", columns=[])
    assert regression.spec["out_features"] == 1
    assert HuggingFace(dataset=COLUMNS, text=None, columns=["stars"]).sources["train"].keys() == {"stars", "labels"}


def refused(key: str, match: str, **kwargs: Any) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        HuggingFace(**kwargs)
    assert caught.value.key == key


def test_what_is_no_data_set(tmp_path: Path) -> None:
    refused(
        "tokenizer",
        r"selects the column 'text'.*AutoTokenizer.*data\.text=null and .* data\.columns=\[…\]",
        dataset=COLUMNS,
    )
    refused("columns", r"contains text\. Set data\.text to this column", dataset=COLUMNS, text=None)
    refused(
        "columns", r"contains text\. Remove the column from data\.columns", dataset=COLUMNS, text=None, columns=["text"]
    )
    refused("target", "'' is invalid", dataset=COLUMNS, target="", tokenizer=Words())
    refused("tokenizer", r"'bert' is invalid.*AutoTokenizer", dataset=COLUMNS, tokenizer="bert")
    refused("tokenizer", "padded and truncated", dataset=COLUMNS, tokenizer=lambda texts, **_: {"ids": [[1], [1, 2]]})
    refused("target", "Did you mean 'label'", dataset=COLUMNS, target="labl", tokenizer=Words())
    refused("text", "one of the columns .*, or null", dataset=COLUMNS, text="sentence", tokenizer=Words())
    refused("columns", r"columns: \[\] is invalid", dataset=COLUMNS, text=None, columns=[])
    refused("path", r"save_to_disk\. Otherwise, set data\.dataset", dataset=None)
    refused("path", r"because data\.dataset is set", path="reviews", dataset=COLUMNS)
    refused("dataset", r"\[1, 2\] is invalid.* a mapping of column names to lists", dataset=[1, 2])
    refused("dataset", r"'imdb' is invalid.*load_dataset, path: …", dataset="imdb")
    refused("dataset", "a split named train", dataset={"test": COLUMNS})
    refused("fold", "from 0 to 4", dataset=COLUMNS, tokenizer=Words(), folds=5, fold=-1)
    ragged = COLUMNS | {"list": [[1] * (1 + n % 2) for n in range(120)]}
    refused("columns", r"equal length.*exclude the column.*data\.columns=", dataset=ragged, tokenizer=Words())
    try:
        import datasets  # noqa: F401
    except ImportError:
        refused("path", r"trainyard\[hf\]", path=str(tmp_path))
    else:
        refused("path", "written by save_to_disk", path=str(tmp_path))


def test_a_missing_folder_names_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", ModuleType("datasets"))
    (tmp_path / "reviews").mkdir()
    told = r"Did you mean '.*/reviews'\? The folder '.*/review' does not exist\."
    refused("path", told, path=str(tmp_path / "review"))
    (tmp_path / "reviews.csv").touch()
    refused("path", r"'.*/reviews\.csv' is a file\.", path=str(tmp_path / "reviews.csv"))


def test_a_folder_that_lacks_an_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `load_from_disk` of a state.json without `_data_files`."""
    monkeypatch.setitem(sys.modules, "datasets", library := ModuleType("datasets"))
    library.load_from_disk = lambda _: {}["_data_files"]  # type: ignore[attr-defined]
    told = r"written by save_to_disk\. Reading the folder failed: An entry '_data_files' is missing in its files\.$"
    refused("path", told, path=str(tmp_path))


def test_columns_that_a_split_lacks() -> None:
    no_stars = {name: column for name, column in COLUMNS.items() if name != "stars"}
    given = {"train": COLUMNS, "validation": no_stars, "test": COLUMNS}
    refused("columns", "the validation split are text, label.*columns=", dataset=given, tokenizer=Words())
    refused("columns", "the validation split", dataset=given, tokenizer=Words(), columns=["stars"])
    no_text = {name: column for name, column in COLUMNS.items() if name != "text"}
    refused("text", "the test split are label, stars", dataset={"train": COLUMNS, "test": no_text}, tokenizer=Words())
    more = {"train": no_stars, "validation": COLUMNS}
    found = HuggingFace(dataset=more, tokenizer=Words(), test_fraction=0)
    assert {split: list(source) for split, source in found.sources.items()} == {
        split: ["input_ids", "attention_mask", "labels"] for split in ("train", "val")
    }


class Streamed:
    """A data set of `load_dataset(streaming=True)`: its columns are known, but it has no length."""

    column_names = tuple(COLUMNS)


def test_data_sets_that_cannot_be_read() -> None:
    refused("dataset", "'Streamed' .* has no length.*leave out streaming=true", dataset=Streamed())
    refused("dataset", "'Streamed'", dataset={"train": COLUMNS, "test": Streamed()}, tokenizer=Words())
    empty: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    refused("dataset", "the training split has no rows", dataset=empty, tokenizer=Words())
    refused("dataset", "the training split has no rows", dataset=empty, tokenizer=Words(), target=None, text=None)
    refused("dataset", "the test split has no rows", dataset={"train": COLUMNS, "test": empty}, tokenizer=Words())
    uneven = COLUMNS | {"stars": [1.0]}
    refused(
        "dataset",
        "in the training split are: text 120, label 120, stars 1.*equal lengths",
        dataset=uneven,
        tokenizer=Words(),
    )
    large = COLUMNS | {"stars": [0.0] * 119 + [1e39]}
    match = r"'stars' .* row 119 \(counted from 0\) of this column in the test split contains 1e\+39"
    refused("columns", match, dataset={"train": COLUMNS, "test": large}, tokenizer=Words())
    refused("target", "row 119 .* training", dataset=large, tokenizer=Words(), columns=[], target="stars")


def test_a_model_of_texts_learns() -> None:
    metric = {"accuracy": {"_target_": "trainyard.metrics.Accuracy"}}
    loop = {"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": 15}
    runner = trained(training(data({"_target_": Given}), MODEL, metric=metric, objective="val/accuracy", loop=loop))
    assert runner.members[0].metrics["val/accuracy"] > 0.9


def test_it_resumes_to_the_bits(tmp_path: Path) -> None:
    resumes_to_the_bits(training(data({"_target_": Given}), MODEL), tmp_path, 8)


def test_a_stack_over_seeds_follows_its_members() -> None:
    stack_follows_members(training(data({"_target_": Given}), MODEL))


def test_data_sets_of_the_library(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed (the extra hf has it)")
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["bad", "good", "none"]),
            "stars": datasets.Value("float32"),
        }
    )
    own = datasets.Dataset.from_dict(COLUMNS, features=features)
    datasets.DatasetDict({"train": own, "test": own.select(range(10))}).save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"test": own}).save_to_disk(str(tmp_path / "odd"))
    refused("path", "a split named train", path=str(tmp_path / "odd"), tokenizer=Words())
    disk = HuggingFace(path=str(tmp_path / "saved"), tokenizer=Words(), columns=[])
    assert disk.classes == ["bad", "good", "none"]
    assert disk.splits == ("train", "val", "test")
    memory = HuggingFace(dataset=own, tokenizer=Words(), columns=["stars"])
    assert memory.spec["num_classes"] == 3
    plain = HuggingFace(dataset=COLUMNS, tokenizer=Words(), columns=["stars"])
    for name, values in plain.sources["train"].items():
        assert torch.equal(values, memory.sources["train"][name])


class Named:
    """Columns of a `datasets.Dataset` whose labels have names."""

    column_names = ("number", "label")

    def __init__(self, labels: list[int]) -> None:
        self.columns = {"number": list(range(len(labels))), "label": labels}
        self.features = {"label": SimpleNamespace(names=["bad", "good", "none"])}

    def __len__(self) -> int:
        return len(self.columns["label"])

    def __getitem__(self, key: Any) -> Any:
        return self.columns[key] if isinstance(key, str) else {name: row[key] for name, row in self.columns.items()}


@pytest.mark.parametrize("kind", [Named, lambda labels: {"label": labels, "number": np.arange(len(labels))}])
def test_a_split_without_labels_is_skipped(kind: Any, caplog: pytest.LogCaptureFixture) -> None:
    """As the test sets of GLUE, whose labels are all -1: they are no class, and no batch has them."""
    labels = [1, 0, 2, 0] * 5
    given = {"train": kind(labels), "validation": kind([0, 1]), "test": kind([-1, -1])}
    data = HuggingFace(dataset=given, text=None, columns=["number"], test_fraction=0.2)
    assert data.spec["num_classes"] == 3
    assert caplog.messages == ["data: the labels of the test split are all -1: the split is skipped."]
    sources: Any = data.sources
    assert sorted(np.concatenate([sources[split]["labels"] for split in ("train", "test")])) == sorted(labels)
    assert len(sources["test"]["labels"]) == 4
    assert sources["val"]["labels"].tolist() == [0, 1]


def test_labels_with_names_keep_their_numbers() -> None:
    """Also where a class does not occur."""
    given = {"train": Named([2, 0, 2, 0]), "validation": Named([0, 2])}
    data = HuggingFace(dataset=given, text=None, columns=["number"], test_fraction=0)
    assert data.classes == ["bad", "good", "none"]
    sources: Any = data.sources
    assert [sources[split]["labels"].tolist() for split in data.splits] == [[2, 0, 2, 0], [0, 2]]


@pytest.mark.parametrize(("labels", "split"), [([-1, 1], "test"), ([0, 3], "validation")])
def test_a_label_that_is_no_class(labels: list[int], split: str) -> None:
    given = {"train": Named([2, 0, 2, 0]), split: Named(labels)}
    refused("target", f"Expected labels from 0 to 2 in the {split} split", dataset=given, text=None, columns=["number"])


def test_a_tokenizer_and_a_model_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (the extra hf has it)")
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.train_from_iterator(TEXTS, trainers.WordLevelTrainer(special_tokens=["[UNK]", "[PAD]"]))
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]")
    fast.save_pretrained(str(tmp_path / "tokenizer"))
    node = {"_target_": "transformers.AutoTokenizer.from_pretrained"}
    tokenizer = node | {"pretrained_model_name_or_path": str(tmp_path / "tokenizer")}

    class Bert(nn.Module):
        def __init__(self, vocab_size: int) -> None:
            super().__init__()
            sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
            config = transformers.BertConfig(vocab_size=vocab_size, num_labels=2, **sizes)
            self.bert = transformers.BertForSequenceClassification(config)

        def forward(self, **inputs: Tensor) -> Any:
            return self.bert(**inputs).logits

    model = {"_target_": "trainyard.models.Supervised", "net": {"_target_": Bert, "vocab_size": "auto"}}
    values = training(data({"_target_": Given}, tokenizer=tokenizer), model)
    resumes_to_the_bits(values, tmp_path, 8)
    metric = {"accuracy": {"_target_": "trainyard.metrics.Accuracy"}}
    loop = {"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": 15}
    runner = trained(values | {"metric": metric, "objective": "val/accuracy", "loop": loop})
    assert runner.members[0].metrics["val/accuracy"] > 0.9
