"""The whole commands of docs/models.md train as they stand there, each for two batches, where its library is there."""

import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
SECTION = PAGE.partition("\n## Three complete commands\n")[2].partition("\n## ")[0]
COMMANDS = [
    shlex.split(block.replace("\\\n", " ")) for block in re.findall(r"```bash\n(python .*?)```", SECTION, re.DOTALL)
]
QUICK = ["loop.max_epochs=1", "limit.train_batches=2", "limit.val_batches=1", "tracker=none", "hydra.run.dir=run"]


LIBRARIES = ["transformers", "timm", "sklearn"]


@pytest.mark.parametrize(("library", "words"), list(zip(LIBRARIES, COMMANDS, strict=True)), ids=LIBRARIES)
def test_a_whole_command(command: Any, library: str, words: list[str]) -> None:
    try:
        importlib.import_module(library)
    except (ImportError, RuntimeError) as error:  # as torchvision of another torch
        pytest.skip(f"{library} does not import: {error}")
    if library != "transformers":
        (code,) = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
        every = "zip(*load_digits(return_X_y=True))"
        assert every in code
        exec(code.replace(every, f"list({every})[:200]"), {})
    assert words[:3] == ["python", "train.py", "-m"]
    given = [word for word in words[3:] if not word.startswith("seed=")]
    assert len(given) == len(words) - 4
    assert command(*given, *QUICK, quick=()) == (0, "")
