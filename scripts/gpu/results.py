"""Results of the check: one JSON file, replaced atomically at each change, so that an interrupted check keeps them."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Content = dict[str, Any]


class Results:
    """The JSON file; several processes may change it.

    Args:
        path: the file; a missing file counts as empty.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Content:
        """Return the content."""
        if not self.path.exists():
            return {}
        content: Content = json.loads(self.path.read_text(encoding="utf-8"))
        return content

    def change(self, change: Callable[[Content], None]) -> None:
        """Change the content with `change`, while no other process changes it."""
        with self._alone():
            content = self.read()
            change(content)
            temporary = self.path.with_name(f".{self.path.name}.new")
            temporary.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
            temporary.replace(self.path)

    def part(self, name: str, **values: Any) -> None:
        """Set values of a part, such as its state."""
        self.change(lambda content: content.setdefault("parts", {}).setdefault(name, {}).update(values))

    def row(self, part: str, table: str, row: str, values: Any) -> None:
        """Set a row of a part's table."""

        def change(content: Content) -> None:
            own = content.setdefault("parts", {}).setdefault(part, {})
            own.setdefault("tables", {}).setdefault(table, {})[row] = values

        self.change(change)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)
