"""Values of configs that were saved as YAML."""

from __future__ import annotations

import pytest

from trainyard.config.saved import saved_config, value_text

TEXT = "a: {b: 1, c: [16, 32], d: null, e: '${a.b}', f: '${oc.env:NO_SUCH_VARIABLE}', h: '???'}\nx: 0.001\n"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("a.b", "1"),
        ("a.c", "[16, 32]"),
        ("a.c.0", "16"),
        ("a.d", "None"),
        ("a.e", "1"),
        ("x", "0.001"),
        ("a", None),
        ("a.f", None),
        ("a.h", None),
        ("a.b.c", None),
        ("a.c.first", None),
        ("y", None),
    ],
)
def test_a_value_is_read_as_python_writes_it(key: str, value: str | None) -> None:
    assert value_text(saved_config(TEXT), key) == value


@pytest.mark.parametrize("text", ["", "a: [", "- 1", "3"])
def test_what_is_no_config_has_no_values(text: str) -> None:
    assert value_text(saved_config(text), "a") is None
