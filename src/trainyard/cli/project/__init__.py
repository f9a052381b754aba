"""New project: the files that `trainyard new` writes."""

from __future__ import annotations

import keyword
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from trainyard import temporary
from trainyard.errors import ConfigError
from trainyard.files import writing

_FILES = Path(__file__).parent / "files"
_SUFFIX = ".tmpl"  # so that no tool takes them for files of this package
_PACKAGE = "package"  # the folder of the project's own package
_NAME = "@NAME@"


def create(name: str, parent: Path) -> Path:
    """Write a project in which training, sweeps, tests and the build of a wheel work; write all files or none.

    Args:
        name: the name of the project, its package and its folder.
        parent: the folder in which the project is created.

    Returns:
        The project's folder.

    Raises:
        ConfigError: the name is not an identifier, or is the name of an installed package or of a file here.
    """
    _check(name, parent)
    part = parent / temporary.marked(f".{name}.")
    with writing(parent / name, part, "repeat the command"):
        try:
            for file in sorted(_FILES.rglob(f"*{_SUFFIX}")):
                own = [name if piece == _PACKAGE else piece for piece in file.relative_to(_FILES).parts]
                target = part / "/".join(own).removesuffix(_SUFFIX).replace(_NAME, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(file.read_text(encoding="utf-8").replace(_NAME, name), encoding="utf-8")
            part.rename(parent / name)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
    return parent / name


def _check(name: str, parent: Path) -> None:
    accepted = "a Python identifier of ASCII characters that is not a keyword"
    if not (name.isidentifier() and name.isascii()) or keyword.iskeyword(name):
        valid = "".join(
            character if f"_{character}".isidentifier() else "_" for character in name if character.isascii()
        )
        valid = f"_{valid}" if valid[:1].isdigit() else valid
        usable = valid.isidentifier() and not keyword.iskeyword(valid)
        raise ConfigError("NAME", name, accepted, hint=f"For example {valid}." if usable else "")
    if name in ("test", "tests", "conf", "train") or name in sys.stdlib_module_names:
        raise ConfigError("NAME", name, "a name that is neither a Python module nor a folder of the project")
    if (parent / name).exists():
        raise ConfigError("NAME", name, "a name that does not exist here", hint=f"{parent / name} already exists.")
    if find_spec(name) is not None:
        raise ConfigError("NAME", name, "an unused name", hint="A module or package with this name can be imported.")
