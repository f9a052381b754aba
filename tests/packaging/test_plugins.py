"""Hydra imports every plugin at every start of every Hydra application: ours must cost nothing."""

import subprocess
import sys
from pathlib import Path

SRC = Path(__file__).parents[2] / "src"


def test_scanning_our_plugins_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from hydra.core.plugins import Plugins; from hydra.plugins.search_path_plugin import SearchPathPlugin\n"
        "found = [plugin.__name__ for plugin in Plugins.instance().discover(SearchPathPlugin)]\n"
        "heavy = {'torch', 'mlflow', 'numpy', 'trainyard'} & set(sys.modules)\n"
        "print(found.count('TrainyardSearchPath'), *sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(SRC)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1"]


def test_hydra_plugins_is_a_namespace_package() -> None:
    assert not (SRC / "hydra_plugins" / "__init__.py").exists()
