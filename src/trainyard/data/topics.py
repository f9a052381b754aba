"""Paragraphs of Python's help topics, a small set of labeled texts that every Python installation contains."""

from __future__ import annotations

from trainyard.checks import integer

SHORTEST = 60
"""Minimum number of characters of a paragraph; shorter ones are headings and signatures."""


def help_topics(count: int = 8) -> dict[str, list[str]]:
    """Return paragraphs of the help topics (`pydoc_data.topics`), as columns `text` and `label`.

    A paragraph that occurs in several topics is omitted. The label is the name of the topic. Texts and topics differ a
    little between versions of Python.

    Args:
        count: the number of topics; the topics with the most paragraphs are used.

    Raises:
        ConfigError: `count` is less than 2.
    """
    from pydoc_data.topics import topics

    count = integer("count", count, at_least=2)
    found: dict[str, set[str]] = {}
    for name, text in topics.items():
        for block in text.split("\n\n"):
            paragraph = " ".join(block.split())
            if len(paragraph) >= SHORTEST:
                found.setdefault(paragraph, set()).add(name)
    own = [(paragraph, min(names)) for paragraph, names in found.items() if len(names) == 1]
    labels = [label for _, label in own]
    largest = set(sorted({*labels}, key=lambda label: (-labels.count(label), label))[:count])
    chosen = sorted((label, paragraph) for paragraph, label in own if label in largest)
    return {"text": [paragraph for _, paragraph in chosen], "label": [label for label, _ in chosen]}
