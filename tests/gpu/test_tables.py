"""The tables of docs/gpu.md, filled from results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from markdown_tables import ROOT, codes, page, table, tables


@pytest.fixture(autouse=True)
def _on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "gpu"))


def filled(content: Any) -> str:
    from tables import fill

    return fill(page("gpu.md"), content)


def test_the_page_is_that_of_its_results() -> None:
    """Without any, everything is not yet run."""
    file = ROOT / "docs" / "gpu.json"
    content = json.loads(file.read_text()) if file.exists() else {}
    assert filled(content) == page("gpu.md")


def test_without_results_nothing_has_run() -> None:
    from catalog import PARTS

    rows = table(filled({}), "part")
    assert [codes(row["part"])[0] for row in rows] == [part.name for part in PARTS]
    assert {row["state"] for row in rows} == {"not yet run"}
    of_parts = [rows for header, rows in tables(filled({})) if header[0] == ""]
    assert len(of_parts) == sum(len(part.tables) for part in PARTS)
    assert all(list(row.values())[1] == "not yet run" for rows in of_parts for row in rows)


SIDE = {"values": [41.0, 43.0, 42.25], "median": 42.25, "loss": 0.25, "same": True, "clocks": [1980, None, 1970]}
RESULTS = {
    "machine": {"device": "a GPU", "driver": None},
    "sizes": "full",
    "parts": {
        "waits": {"state": "done", "seconds": 7.4, "tables": {"waits": {"iterations": {"found": 200}}}},
        "steps": {
            "state": "ended",
            "error": "not finished within 145 s",
            "seconds": 145.2,
            "tables": {
                "mlp": {
                    "captured": SIDE,
                    "capture=false": SIDE | {"same": False, "clocks": [None]},
                    "plain, eager, resident data": SIDE | {"failed": "RuntimeError: a | b"},
                    "plain, eager, DataLoader": {"failed": "RuntimeError: it\ncannot"},
                    "plain, whole-step CUDA graph": {"missing": "needs CUDA"},
                }
            },
        },
    },
}


def test_what_was_measured_is_shown_and_what_was_not_is_named() -> None:
    text = filled(RESULTS)
    assert "Measured on: device a GPU.\n" in text
    states = {codes(row["part"])[0]: (row["state"], row["seconds"]) for row in table(text, "part")}
    assert states["steps"] == ("ended: not finished within 145 s", "145")
    assert states["waits"] == ("done", "7")
    assert states["stacks"] == ("not yet run", "")
    _, mlp = tables(text.partition("A training step, small MLP:")[2])[0]
    shown = {name: cells for name, *cells in (row.values() for row in mlp)}
    assert shown == {
        "captured": ["42.2", "41.0 to 43.0 (3)", "0.25", "1975"],
        "capture=false": ["42.2", "41.0 to 43.0 (3)", "0.25 (differs)", ""],
        "plain, eager, resident data": ["42.2 (then failed: RuntimeError: a | b)", "41.0 to 43.0 (3)", "0.25", "1975"],
        "plain, eager, DataLoader": ["failed: RuntimeError: it cannot", "", "", ""],
        "plain, whole-step CUDA graph": ["needs CUDA", "", "", ""],
        "plain, torch.compile reduce-overhead": ["no result (ended: not finished within 145 s)", "", "", ""],
    }


def test_filling_again_changes_nothing() -> None:
    from tables import fill

    assert fill(filled(RESULTS), RESULTS) == filled(RESULTS)
    assert fill(filled(RESULTS), {}) == filled({})


@pytest.mark.parametrize("text", ["", "{begin}", "{end} {begin}", "{begin} {begin} {end}", "{begin} {end} {end}"])
def test_a_page_without_its_markers(text: str) -> None:
    from tables import BEGIN, END, fill

    with pytest.raises(ValueError, match="the page does not have"):
        fill(text.format(begin=BEGIN, end=END), {})


def test_the_results_can_fill_another_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tables as script

    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    (tmp_path / "page.md").write_text(f"# Mine\n{script.BEGIN}\n{script.END}\n")
    arguments = ["tables.py", str(tmp_path / "results.json"), "--page", str(tmp_path / "page.md")]
    monkeypatch.setattr("sys.argv", arguments)
    script.main()
    assert "| captured | 42.2 |" in (tmp_path / "page.md").read_text()


def test_the_page_lists_the_packages_that_the_check_needs() -> None:
    from requirements import requirements

    rows = table(page("gpu.md"), "package")
    shown = [(*codes(row["package"]), *codes(row["module"]), row["use"]) for row in rows]
    assert shown == [(each.package, each.module, each.use) for each in requirements()]


def test_a_line_of_another_form_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import requirements

    monkeypatch.setattr(requirements, "FILE", tmp_path / "requirements.txt")
    requirements.FILE.write_text("hydra-core\n")
    with pytest.raises(ValueError, match="'hydra-core' is not of the form 'package  # module: use'"):
        requirements.requirements()


def test_the_limits_fit_into_the_whole() -> None:
    """A part beside others is waited for by the first that measures time: it must not add to the time."""
    from catalog import MACHINE, PARTS, TOTAL

    assert MACHINE + sum(part.limit for part in PARTS if not part.beside) <= TOTAL == 480
    first = next(number for number, part in enumerate(PARTS) if part.timed)
    before = sum(part.limit for part in PARTS[:first] if not part.beside)
    assert all(part.limit <= before for part in PARTS if part.beside)
