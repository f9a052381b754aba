"""pyproject.toml declares what the source imports; constraints.txt pins it, within the declared ranges."""

import ast
import re
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DISTRIBUTION = {
    "IPython": "ipython",
    "PIL": "pillow",
    "hydra": "hydra-core",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
DISTRIBUTION["huggingface_hub"] = "huggingface-hub"
OURS = {"trainyard", "hydra_plugins"}
# Imported only where somebody asks for what needs them, with a message that says what to install; triton if it is in.
OPTIONAL = {"torchcodec", "torchmetrics", "triton", "huggingface-hub", "ipython"}


def pins(file: str = "constraints.txt") -> dict[str, str]:
    lines = [line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def requirements(*groups: str) -> list[Requirement]:
    extras = PROJECT["optional-dependencies"]
    lines = PROJECT["dependencies"] + [line for group in groups for line in extras[group]]
    return [Requirement(line) for line in lines]


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return {name.partition(".")[0] for name in found}


def test_the_source_imports_only_what_is_declared() -> None:
    extras = requirements(
        *("hf", "lightning", "ray", "rl", "safetensors", "search", "vision", "timm", "transformers", "tensorboard"),
        "wandb",
    )
    declared = {canonicalize_name(requirement.name) for requirement in extras} | OPTIONAL
    for path in (ROOT / "src").rglob("*.py"):
        outside = imported(path) - set(sys.stdlib_module_names) - OURS
        missing = {DISTRIBUTION.get(name, name) for name in outside} - declared
        assert not missing, f"{path.relative_to(ROOT)} imports {sorted(missing)}"


def test_the_pins_lie_in_the_declared_ranges() -> None:
    pinned = pins()
    for requirement in requirements("test"):
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier, str(requirement)


def test_the_pins_of_the_site_lie_in_the_declared_ranges_and_beside_those_of_the_tests() -> None:
    pinned = pins("constraints-docs.txt")
    for requirement in requirements("docs")[len(PROJECT["dependencies"]) :]:
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier, str(requirement)
    assert not pinned.keys() & pins().keys()


def test_the_pins_of_the_later_hydra_lie_in_the_declared_ranges() -> None:
    declared = {canonicalize_name(requirement.name): requirement.specifier for requirement in requirements()}
    later = pins("constraints-hydra14.txt")
    assert later.keys() == {"hydra-core", "omegaconf"}
    for name, version in later.items():
        assert declared[name].contains(version, prereleases=True), f"{name}=={version}"


def test_the_pins_fit_any_machine() -> None:
    for name, version in pins().items():
        assert re.fullmatch(r"[0-9][0-9a-z.]*", version), f"{name}=={version}: a local build"
        assert not re.match("nvidia|cuda|pip$|setuptools$|trainyard$", name), name
