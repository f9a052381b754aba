"""Each message that a page quotes, in its text or in the output of a command, is one that the source can write."""

import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from message_templates import WILD, Templates, plain_words, texts
from quoted_messages import Quote, is_message, output, quotes

ROOT = Path(__file__).parents[2]
PAGES = sorted({ROOT / "README.md", *(ROOT / "docs").rglob("*.md")} - {ROOT / "docs/benchmarks.md"})

VALUES = {  # what stands in a message and is not from the source
    "mlp digits": "the name of a run: its model and its data",
    "No space left on device": "the operating system's text of the error ENOSPC",
    "Invalid beta parameter at index": "an error of torch.optim.Adam",
    "nan": "a loss",
    "perplexity": "a metric of conf/metric/language.yaml",
    "timer": "a key of conf/hook",
    "wide": "a model of the project on docs/configuration.md",
    "waves": "the name of a new project",
    "spirals": "the data of the tutorial",
    "reached": "the reason that the page's own loop gives",
}
DRAWINGS = {  # blocks that are no output, by page and first line
    ("docs/resume.md", "outputs/mine/"): "the files of a run, with what they are",
    (
        "docs/tracking.md",
        "train.py ── metrics.jsonl ──▶ shipper ──▶ MLflow (sqlite:///mlflow.db, or a server)",
    ): "a drawing",
}


@functools.cache
def source() -> Templates:
    """The templates of src; the names of the options in conf are values."""
    codes = (file.read_text(encoding="utf-8") for file in sorted((ROOT / "src").rglob("*.py")))
    return Templates(
        (text for code in codes for text in texts(code)), (file.stem for file in (ROOT / "conf").rglob("*.yaml"))
    )


def quoted() -> Iterator[Quote]:
    for file in PAGES:
        yield from quotes(str(file.relative_to(ROOT)), file.read_text(encoding="utf-8"))


def without_values(text: str) -> str:
    return re.sub(rf"\b({'|'.join(VALUES)})\b(?!')", r"'\1'", text)


def test_the_source_has_each_message_that_a_page_quotes() -> None:
    checked = [quote for quote in quoted() if (quote.page, quote.block) not in DRAWINGS]
    unknown = [(quote, source().unknown(without_values(quote.text))) for quote in checked]
    stale = [f"{quote.page}:{quote.line}: {quote.text}\n  not in src: {words}" for quote, words in unknown if words]
    assert not stale, "the source does not write these messages:\n" + "\n".join(stale)
    assert len(checked) > 150, "the pages quote more messages than are found"


def test_each_exception_is_needed() -> None:
    found = list(quoted())
    assert {(quote.page, quote.block) for quote in found} >= DRAWINGS.keys()
    assert [value for value in VALUES if not any(value in quote.text for quote in found)] == []


def test_a_changed_word_is_found() -> None:
    """The test would be of no use if other templates contained the words of a message that has changed."""
    missed = []
    for quote in list(quoted())[::7]:
        text = without_values(quote.text)
        for word in plain_words(text) if (quote.page, quote.block) not in DRAWINGS else ():
            changed = f"{text[: word.start]}zebra{text[word.end :]}"
            missed += [] if source().unknown(changed) else [changed]
    assert missed == []


def test_templates_are_read_from_code() -> None:
    code = '''
    """Docstring."""
    log.warning("%s of %d runs " f"ended early: {reason!r}.")
    raise ValueError("the key " + key + " is not used")
    "left out, because it is no value"
    text = "{} of {name} parts".format(1, name=2)
    '''
    found = set(texts("if 1:" + code))
    assert f"{WILD} of {WILD} runs ended early: {WILD}." in {
        text.replace("%s", WILD).replace("%d", WILD) for text in found
    }
    assert f"the key {WILD} is not used" in found
    assert f"{WILD} of {WILD} parts" in found
    assert not {text for text in found if "left out" in text or "Docstring" in text}


@pytest.mark.parametrize(
    ("message", "unknown"),
    [
        ("lr: 0 is invalid. Expected a number above 0.", []),
        ("lr: 0 is invalid. Expected a value above 0.", ["a", "value", "above"]),
        ("lr: 0 is wrong. Expected a number above 0.", ["is", "wrong"]),
        ("The run 'the last one' ended after 3 epochs.", []),
        ("The job 'the last one' ended after 3 epochs.", ["The", "job", "ended", "after"]),
        ("The run 'x' ended after …", []),
        ("number above 0 and below …", ["number", "above", "and", "below"]),
        ("at the end of a long …", []),
    ],
)
def test_a_message_consists_of_templates(message: str, unknown: list[str]) -> None:
    templates = Templates(
        [
            f"{WILD} is invalid. Expected {WILD}.",
            "a number above 0",
            f"The run {WILD} ended after {WILD}.",
            "epoch",
            "not at the end of a long text",
        ]
    )
    assert templates.unknown(message) == unknown


def test_messages_are_told_from_code_and_commands() -> None:
    assert is_message("the loss is nan at iteration 10")
    assert is_message("model: 'mpl' is invalid. Expected a value")
    assert not is_message("python train.py show me a run")
    assert not is_message("name(of the purpose, 3)")
    assert not is_message("models, data, optim, schedules")


def test_wrapped_lines_of_output_are_one_message() -> None:
    long = "lr: 0 is invalid. Expected a number that is larger than any number in this long list of numbers, or the"
    page = f"```\n$ python train.py\n{long}\nword auto.\n\nname   number   state\n1      2        good\n```\n"
    assert [(quote.line, quote.text) for quote in output("page", page)] == [(3, f"{long} word auto.")]
