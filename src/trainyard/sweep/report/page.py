"""HTML document of the report: style, script and frame. It loads nothing from elsewhere."""

from __future__ import annotations

from html import escape

from trainyard.sweep.report.svg import SHADES

# Viridis (van der Walt and Smith, 2015) from worst to best; the best has most contrast on light and dark ground.
_LIGHT = "#d2e21b #98d83e #63cb5f #3aba76 #21a685 #20928c #277e8e #30698e #3b528b #443a83 #481f70 #440154"
_DARK = "#414487 #38588c #2f6b8e #287d8e #218e8d #1fa088 #2ab07f #48c16e #70cf57 #9dd93b #d0e11c #fde725"


def _palette(colours: str) -> str:
    return "".join(f"--c{index}:{colour};" for index, colour in enumerate(colours.split()))


_STYLE = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1c2127; --soft: #5d6773; --grid: #e8ebee; --rule: #b4bcc4;
  --raised: #f5f7f8; --rest: #d5dade; --accent: #3b528b; --bad: #b3261e; PALETTE_LIGHT }
@media (prefers-color-scheme: dark) { :root { --ground: #15181c; --ink: #e4e7ea; --soft: #98a2ad; --grid: #262b31;
  --rule: #505a64; --raised: #1d2126; --rest: #353c44; --accent: #48c16e; --bad: #ff8a80; PALETTE_DARK } }
body { margin: 0 auto; max-width: 1120px; padding: 28px 24px 60px; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 24px; margin: 0 0 14px; overflow-wrap: anywhere; } h2 { font-size: 18px; margin: 36px 0 8px; }
p { margin: 6px 0; } .note { color: var(--soft); font-size: 13px; max-width: 80ch; }
a { color: inherit; text-decoration-color: var(--rule); } a:hover { text-decoration-color: currentColor; }
dl { display: flex; flex-wrap: wrap; gap: 10px 36px; margin: 0; }
dt { color: var(--soft); font-size: 12px; } dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow: auto; } .ranking { max-height: 480px; border: 1px solid var(--grid); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums; }
th { position: sticky; top: 0; background: var(--raised); text-align: left; cursor: pointer; white-space: nowrap;
  font-weight: 600; user-select: none; }
th::after { position: absolute; color: var(--soft); }
th[aria-sort=ascending]::after { content: "↑"; } th[aria-sort=descending]::after { content: "↓"; }
th, td { padding: 4px 12px; } td { border-top: 1px solid var(--grid); overflow-wrap: break-word; max-width: 36ch; }
td.number, th.number { text-align: right; white-space: nowrap; }
tr.unfinished { color: var(--soft); } .error { color: var(--bad); font-size: 12px; max-width: 46ch; }
tr.on td { background: var(--raised); }
.charts { display: flex; flex-wrap: wrap; gap: 12px 16px; }
.legend { display: inline-flex; vertical-align: middle; margin: 0 6px; } .legend i { width: 14px; height: 10px; }
svg { display: block; max-width: 100%; height: auto; font-size: 11px; } .wide svg { max-width: none; }
text { fill: var(--soft); } .name { fill: var(--ink); font-weight: 600; }
.end { text-anchor: end; } .middle { text-anchor: middle; }
.halo { fill: var(--ink); paint-order: stroke; stroke: var(--ground); stroke-width: 4px; stroke-linejoin: round; }
.grid { stroke: var(--grid); } .rung { stroke: var(--rule); stroke-dasharray: 2 3; } .axis { stroke: var(--rule); }
.median { stroke: var(--soft); stroke-width: 2; } .bar { fill: var(--accent); }
polyline { fill: none; stroke: var(--c); stroke-width: 1.6; stroke-linejoin: round; opacity: .85; }
circle { fill: var(--c); stroke: var(--ground); stroke-width: .8; }
.none { --c: var(--rule); } .rest { --c: var(--rest); } polyline.rest { stroke-width: .8; }
circle.rest { --c: var(--rule); }
svg:has(.on) .job:not(.on) { opacity: .12; } polyline.on { stroke-width: 3; opacity: 1; } circle.on { stroke-width: 0; }
"""

# A job under the pointer is highlighted in every chart. A click on a heading sorts by it, empty cells last.
_SCRIPT = """
document.addEventListener("pointerover", event => {
  const job = event.target.closest("[data-job]")?.dataset.job;
  for (const each of document.querySelectorAll(".on")) each.classList.remove("on");
  if (job !== undefined)
    for (const each of document.querySelectorAll(`[data-job="${job}"]`)) each.classList.add("on");
});
for (const head of document.querySelectorAll("th")) head.addEventListener("click", () => {
  const down = head.ariaSort === "ascending", body = head.closest("table").tBodies[0];
  for (const each of head.parentNode.cells) each.ariaSort = null;
  head.ariaSort = down ? "descending" : "ascending";
  const value = row => row.cells[head.cellIndex].dataset.value;
  const compare = (a, b) => (a === "") - (b === "") ||
    (down ? -1 : 1) * (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b);
  body.append(...[...body.rows].sort((a, b) => compare(value(a), value(b))));
});
"""

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def document(title: str, body: str) -> str:
    """Return a whole HTML page, which loads nothing.

    Args:
        title: the title, as plain text.
        body: the body, as HTML.
    """
    style = _STYLE.replace("PALETTE_LIGHT", _palette(_LIGHT)).replace("PALETTE_DARK", _palette(_DARK))
    classes = "".join(f".c{index}{{--c:var(--c{index});background:var(--c)}}" for index in range(SHADES))
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>{style}{classes}\n</style>\n</head>\n<body>\n{body}\n<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )
