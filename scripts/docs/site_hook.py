"""MkDocs' hook of the site: the pages that are generated, and links that lead out of docs/.

See https://www.mkdocs.org/user-guide/configuration/#hooks.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from api_pages import api_pages
from config_pages import config_pages

ROOT = Path(__file__).resolve().parents[2]
_LINK = re.compile(r"\[(?P<text>[^\]\n]+)\]\((?P<path>\.\.?/[^)#\s]*)(?:#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    """Fill the two lists of generated pages in the navigation."""
    reference = next(entry["Reference"] for entry in config.nav if "Reference" in entry)
    for entry in reference:
        if isinstance(entry, dict) and "Config options" in entry:
            entry["Config options"] = list(config_pages())
        if isinstance(entry, dict) and "Python API" in entry:
            entry["Python API"] = list(api_pages())
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    for path, text in {**config_pages(), **api_pages()}.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Show a link to a file outside of docs/, which the site does not have, as its text and the file's path."""
    return without_outside_links(markdown, page.file.src_uri)


def without_outside_links(markdown: str, page: str) -> str:
    """Return the Markdown of a page with the path in place of each link to a file outside of docs/.

    >>> without_outside_links("[variables](../src/variables.py)", "tracking.md")
    'variables (`src/variables.py`)'
    >>> without_outside_links("[`conf/data`](../conf/data)", "data.md")
    '`conf/data`'
    """

    def shown(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link["path"]))
        if path.startswith("docs/"):
            return link[0]
        text = link["text"]
        return text if path in text else f"{text} (`{path}`)"

    return _LINK.sub(shown, markdown)
