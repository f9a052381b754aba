"""Progress bar in a notebook: a text output of the cell, which every front end shows and which is replaced at each
update."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

COLUMNS = 100


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def notebook_bar(*columns: ProgressColumn) -> Progress:
    """Return a bar with these columns, which disappears when it stops. Unlike rich's bar, it does not need
    ipywidgets."""
    from IPython.display import display
    from rich.console import Console
    from rich.progress import Progress

    class NotebookBar(Progress):
        _output: Any = None

        def start(self) -> None:
            self._output = display({"text/plain": ""}, raw=True, display_id=True)

        def refresh(self) -> None:
            with self.console.capture() as text:
                self.console.print(self.get_renderable())
            self._show(text.get().rstrip())

        def stop(self) -> None:
            self._show("")

        def _show(self, text: str) -> None:
            if self._output is not None:
                self._output.update({"text/plain": text}, raw=True)

    console = Console(file=io.StringIO(), width=COLUMNS, force_jupyter=False, force_terminal=False)
    return NotebookBar(*columns, console=console, auto_refresh=False)
