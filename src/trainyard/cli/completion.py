"""Completion of a RUN in the shell: the ids and names of the runs here, and files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from trainyard.cli.output import SHORT

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


class RunType(click.ParamType):  # type: ignore[type-arg,unused-ignore] # generic in later versions alone
    """A run, as named by the user."""

    name = "run"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the matching IDs, each with the name of the run, and the matching names; if there are none, the
        matching files."""
        from click.shell_completion import CompletionItem

        from trainyard.catalog import find
        from trainyard.catalog.find import default_folders

        runs = [] if "/" in incomplete else find(default_folders())
        found: dict[str, Any] = {}
        for run in runs:
            found |= {run.info.id[:SHORT]: run.info.name} | {run.info.name: str(run.directory)}
        items = [CompletionItem(word, help=told) for word, told in found.items() if word.startswith(incomplete)]
        return items or [CompletionItem(incomplete, type="file")]


RUN = RunType()
