"""The generated reference has each option of conf/ and each public name; links that leave docs/ are shown as paths."""

import importlib
import sys

import pytest
import yaml
from markdown_tables import ROOT, codes, tables

sys.path.insert(0, str(ROOT / "scripts/docs"))
from api_pages import api_pages, public_names
from config_pages import CONF, Option, config_pages, options
from site_hook import without_outside_links


@pytest.fixture(scope="module")
def configs() -> dict[str, str]:
    return config_pages()


def test_every_option_file_is_on_the_page_of_its_group(configs: dict[str, str]) -> None:
    for file in CONF.rglob("*.yaml"):
        group = file.parent.relative_to(CONF).as_posix()
        page = configs[f"reference/config/{'settings' if group == '.' else group.replace('/', '-')}.md"]
        assert f"# {'Settings of a run' if group == '.' else file.stem}\n" in page


def test_every_key_of_an_option_file_has_a_row_with_its_default(configs: dict[str, str]) -> None:
    rows = [row for _, rows in tables(configs["reference/config/model.md"]) for row in rows]
    told = {codes(row["key"])[0]: row for row in rows}
    content = yaml.safe_load((CONF / "model/cnn.yaml").read_text())
    assert {f"model.{key}" for key in content if not key.startswith("_")} <= set(told)
    assert told["model.channels"]["default"] == "`[32, 64, 128]`"
    assert "halves the image" in told["model.channels"]["meaning"]


def test_comments_above_and_behind_a_key_are_its_meaning() -> None:
    text = "# The head of the file.\n_target_: mine.Net\n# Above.\na:\n  b: [1, 2]  # behind\nc: null\n"
    assert options(text) == [
        Option("a.b", "[1, 2]", "behind", "mine.Net"),
        Option("c", "null", "", "mine.Net"),
    ]


def test_every_public_name_is_there_and_has_an_entry() -> None:
    pages = api_pages()
    for package, names in public_names().items():
        module = importlib.import_module(package)
        for name in names:
            assert hasattr(module, name)
            assert f"::: {package}.{name}" in pages[f"reference/api/{package}.md"].splitlines()
    assert {"trainyard.models", "trainyard.runner", "trainyard.hooks"} <= set(public_names())


def test_a_link_out_of_the_pages_becomes_a_path() -> None:
    inside = "[b](../b.md) [c](c.md#d)"
    assert without_outside_links(inside, "x/y.md") == inside
    assert without_outside_links("[list](../src/a.py#L1) [b](b.md)", "y.md") == "list (`src/a.py`) [b](b.md)"
