"""Griffe's extension of the site: sections of docstrings that it knows under another name.

See https://mkdocstrings.github.io/griffe/guide/users/extending/.
"""

from __future__ import annotations

import re
from typing import Any

import griffe


class Sections(griffe.Extension):
    """Shows a section `Example:` as code: Griffe has it under the name `Examples:`."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename the section in the docstring of an object, after the package is loaded."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
