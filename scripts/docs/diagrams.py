"""Renders the diagrams of the documentation: docs/images/*.mmd (Mermaid) to SVG files beside them.

    npm pack mermaid && tar xzf mermaid-*.tgz package/dist/mermaid.min.js
    python scripts/docs/diagrams.py package/dist/mermaid.min.js

It needs Chromium. The images are committed, because neither the site nor its build loads remote scripts. Boxes have a
background color and lines are gray, so that the images can be read on a light and on a dark page.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
SETTINGS = {
    "startOnLoad": False,
    "theme": "base",
    "htmlLabels": False,
    "flowchart": {"htmlLabels": False, "useMaxWidth": False, "curve": "basis"},
    "themeCSS": ".edgeLabel rect { opacity: 1 !important; }",
    "themeVariables": {
        "fontFamily": "sans-serif",
        "fontSize": "14px",
        "primaryColor": "#e6ebf7",
        "primaryTextColor": "#1b2430",
        "primaryBorderColor": "#5b6fa8",
        "secondaryColor": "#e6ebf7",
        "tertiaryColor": "#f4f4f6",
        "tertiaryBorderColor": "#9aa0ad",
        "lineColor": "#808792",
        "clusterBkg": "#f4f4f6",
        "clusterBorder": "#9aa0ad",
        "titleColor": "#1b2430",
        "edgeLabelBackground": "#f4f4f6",
    },
}
PAGE = """<!doctype html><meta charset="utf-8"><body><pre id="result"></pre><script src="{script}"></script><script>
mermaid.initialize({settings});
mermaid.render("{name}", {source}).then(({{ svg }}) => {{
  document.getElementById("result").textContent = svg;
}});
</script></body>"""


def rendered(script: Path, name: str, source: str) -> str:
    """Return the SVG of a diagram.

    Raises:
        RuntimeError: Chromium printed no SVG.
    """
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "page.html")
        page.write_text(
            PAGE.format(
                script=script.resolve().as_uri(), settings=json.dumps(SETTINGS), name=name, source=json.dumps(source)
            ),
            encoding="utf-8",
        )
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        done = subprocess.run(
            [*command, "--virtual-time-budget=20000", "--dump-dom", page.as_uri()],
            capture_output=True,
            text=True,
            check=True,
        )
    found = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)
    svg = found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") if found else ""
    if not svg.startswith("<svg"):
        raise RuntimeError(f"no SVG of {name}: {done.stderr[-500:]}")
    return svg


def main(script: Path) -> None:
    for source in sorted(IMAGES.glob("*.mmd")):
        svg = rendered(script, source.stem, source.read_text(encoding="utf-8"))
        source.with_suffix(".svg").write_text(svg + "\n", encoding="utf-8")
        print(source.with_suffix(".svg"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
