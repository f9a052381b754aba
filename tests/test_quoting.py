"""Paths in overrides, as Hydra and a shell read them."""

from __future__ import annotations

import shlex

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hypothesis import given
from hypothesis import strategies as st

from trainyard.quoting import override, shell_override, shell_path

# A text of OmegaConf's own, ${…}, is no path that a command could be given.
PATHS = st.text(st.sampled_from("ab1/ =,([{}])#&ø'\"\\:~$.*"), max_size=8).filter(lambda text: "${" not in text)


@given(PATHS | st.sampled_from(["null", "true", "1e3", "1/2", "nan"]))
def test_hydra_reads_the_path(path: str) -> None:
    (word,) = shlex.split(shell_override("hydra.run.dir", path))
    assert word == override("hydra.run.dir", path)
    value = OverridesParser.create().parse_override(word).value()
    assert (value.text if isinstance(value, QuotedString) else value) == path
    assert shlex.split(shell_path(path)) == [path]
