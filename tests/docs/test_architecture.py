"""docs/architecture.md and docs/glossary.md are complete, and name what there is; the diagram holds the import rule."""

import importlib.util
import re
from pathlib import Path

import pytest
from markdown_tables import ROOT, codes, names, page, section, table, tables, without_blocks

PAGE = page("architecture.md")
PACKAGE = ROOT / "src/trainyard"
IMAGES = ROOT / "docs/images"
TERMS = """run, Runner, loop, step, hook, member, stack, lane, sweep, job, slot, proposer, scheduler, executor, agent,
manifest, journal, shipper"""  # one word for one concept, everywhere


def test_every_package_has_a_line() -> None:
    folders = {file.parent for file in PACKAGE.rglob("*.py")} - {PACKAGE}
    found = sorted(f"{folder.relative_to(ROOT)}/" for folder in folders)
    told = names(table(PAGE, "package"), "package")
    assert sorted(told) == [*["src/hydra_plugins/"], *found]
    assert len(told) == len(set(told))


def test_every_module_beside_the_packages_has_a_line() -> None:
    found = {str(file.relative_to(ROOT)) for file in PACKAGE.glob("*.py") if file.name != "__init__.py"}
    assert set(names(table(PAGE, "module"), "module")) == found


def test_every_path_is_there() -> None:
    """From the top of the repository, or from the package."""
    paths = [code for code in codes(without_blocks(PAGE)) if re.fullmatch(r"[a-z_0-9]+(/[a-z_0-9.]+)*(/|\.py)", code)]
    assert len(paths) > 50
    for path in paths:
        assert any((top / path).exists() for top in (ROOT, PACKAGE)), path


def layers() -> list[set[str]]:
    """The layers of the test that holds the import rule, without what is not there and what this page does not list."""
    spec = importlib.util.spec_from_file_location("test_imports", ROOT / "tests/packaging/test_imports.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    there = {file.parent.name for file in PACKAGE.glob("*/__init__.py")} | {"app"}
    return [names for layer in module.LAYERS if (names := set(layer) & there)]


def test_the_rule_is_the_one_that_is_held() -> None:
    rule = section(PAGE, "The import rule")
    line = rule[rule.index("`config`") : rule.index("\n- ")]
    told = [{name for span in codes(part) for name in span.split(", ")} for part in line.split("←")]
    assert told == layers()


def test_the_diagram_has_every_package_and_arrows_that_the_rule_allows() -> None:
    diagram = (IMAGES / "packages.mmd").read_text(encoding="utf-8")
    nodes = {
        node: set(label.split(", "))
        for node, label in re.findall(r'^    (\w+)\["([\w, ]+?)(?:<br/>.*)?"\]$', diagram, re.MULTILINE)
    }
    place = {name: number for number, layer in enumerate(layers()) for name in layer}
    assert set.union(*nodes.values()) == {*place, "sweep", "hydra_plugins"}
    arrows = re.findall(r"^    (\w+) -->(?:\|.*\|)? (\w+)$", diagram, re.MULTILINE)
    assert len(arrows) > 8
    for user, used in arrows:
        if "sweep" not in (user, used):
            above, below = (min(place[name] for name in nodes[user]), max(place[name] for name in nodes[used]))
            assert above > below, f"{user} --> {used}"


@pytest.mark.parametrize("name", ["packages", "scheduler", "executors"])
def test_the_image_is_the_one_of_the_diagram(name: str) -> None:
    image = re.sub(r"<style>.*?</style>", "", (IMAGES / f"{name}.svg").read_text(encoding="utf-8"), flags=re.DOTALL)
    drawn = set(re.findall(r"[a-z_.]+", re.sub(r"<[^>]*>", " ", image)))
    labels = re.findall(r'"([^"]+)"', (IMAGES / f"{name}.mmd").read_text(encoding="utf-8"))
    words = set(re.findall(r"[a-z_.]+", " ".join(labels).replace("<br/>", " ")))
    assert words - drawn == set()
    assert f"](images/{name}.svg)" in PAGE


def test_every_term_is_defined_once() -> None:
    told = []
    for header, rows in tables(page("glossary.md")):
        assert header == ["term", "meaning"]
        for row in rows:
            told += [name for bold in re.findall(r"\*\*(.+?)\*\*", row["term"]) for name in bold.split(", ")]
            assert row["meaning"].endswith((".", ")")), row
    missing = {term.strip() for term in TERMS.split(",")} - set(told)
    assert not missing
    assert len(told) == len(set(told))


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", re.sub(r"\[(.+?)\]\(.+?\)", r"\1", heading)).strip().lower().replace(" ", "-")


def test_every_link_leads_somewhere() -> None:
    pages = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    anchors: dict[Path, set[str]] = {}
    links = []
    for file in pages:
        text = without_blocks(file.read_text())
        anchors[file] = {slug(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}
        links += [(file, link) for link in re.findall(r"\]\(([^)\s]+)\)", re.sub("`[^`]+`", "", text))]
    assert len(links) > 100
    for file, link in links:
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (file.parent / path).resolve() if path else file
        assert target.exists(), f"{file.name}: {link}"
        if anchor and target in anchors:
            assert anchor in anchors[target], f"{file.name}: {link}"


def test_every_page_is_linked_from_the_readme() -> None:
    text = page("README.md")
    for file in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{file.name})" in text, file.name


def test_every_row_has_a_cell_for_each_column() -> None:
    """Reading a table checks it."""
    assert sum(len(tables(file.read_text())) for file in (ROOT / "docs").rglob("*.md")) > 50
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        tables("| a | b |\n|---|---|\n| `one | cell` |")
