"""HTML document of the report: style, script and frame. It loads no other files."""

from __future__ import annotations

from html import escape
from pathlib import Path

from trainyard.sweep.report.items import SHADES

# Viridis (van der Walt and Smith, 2015) from worst to best; the best has most contrast on light and dark ground.
_LIGHT = "#d2e21b #98d83e #63cb5f #3aba76 #21a685 #20928c #277e8e #30698e #3b528b #443a83 #481f70 #440154"
_DARK = "#414487 #38588c #2f6b8e #287d8e #218e8d #1fa088 #2ab07f #48c16e #70cf57 #9dd93b #d0e11c #fde725"
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def document(title: str, body: str, live: float | None = None) -> str:
    """Return a complete HTML page, which loads no other files.

    Args:
        title: the title, as plain text.
        body: the body, as HTML.
        live: the seconds after which the page reloads itself; None for never.
    """
    style = _file("page.css").replace("PALETTE_LIGHT", _palette(_LIGHT)).replace("PALETTE_DARK", _palette(_DARK))
    classes = "".join(f".c{index}{{--c:var(--c{index});background:var(--c)}}" for index in range(SHADES))
    reload = "" if live is None else f" data-live={live:g}"
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>\n{style}{classes}\n</style>\n</head>\n<body{reload}>\n{body}\n"
        f"<script>\n{_file('page.js')}</script>\n</body>\n</html>\n"
    )


def _file(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _palette(colours: str) -> str:
    return "".join(f"--c{index}:{colour};" for index, colour in enumerate(colours.split()))
