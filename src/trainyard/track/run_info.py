"""Description of a run: `run.json` in its directory, from which the shipper and `trainyard sync` create the MLflow
run."""

from __future__ import annotations

import dataclasses
import json
import time
import uuid
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Self, get_type_hints

from trainyard import temporary
from trainyard.checks import number
from trainyard.config.annotations import check_value
from trainyard.errors import ConfigError, TrainyardError
from trainyard.files import writing
from trainyard.redaction import redacted
from trainyard.track.lines import LAST_TIME

FILE = "run.json"


@dataclass
class RunInfo:
    """Record of a run for MLflow.

    Args:
        name: display name of the run.
        params: the selected settings with flat keys (`optim.lr`), as MLflow params; values are cut at 6000 characters.
            For a resumed run, the first values.
        settings: all settings, of which `params` is a selection; empty if `params` contains all.
        changes: the params whose values changed when the run was resumed: a mapping from `param@step` to the new value.
        tags: MLflow tags.
        facts: properties of the machine and the code (`facts.collect`), which are also tags.
        config: the resolved config's path inside the run's directory.
        parent: `id` of the parent's run, for a job of a sweep.
        id: the unique ID of the run, created once; the MLflow run has the tag `trainyard.run_id` with this ID.
        experiment, uri: the experiment and the store of the run, set by the tracker; None if it is not tracked.
        experiment_id: the MLflow ID of the experiment, if it is selected by ID instead of by name.
        start_time: the start time in Unix seconds.
        user, source: the user, and the program that was started.
        program: the Python arguments that start this program (`-m trainyard.train`); empty if it has no file, or if
            another process started the run.
        config_path: the value of --config-path on its command line; None if it has none.
        python_path: folders from which the shipper imports the user's model.
        copies: additional copies of its metrics: `tensorboard`, `wandb=offline`.
        mark: the mark that identifies its directory as the user's own (`trainyard.track.own`).
    """

    name: str
    params: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    changes: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    config: str | None = None
    parent: str | None = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    experiment: str | None = None
    experiment_id: str | None = None
    uri: str | None = None
    start_time: float = field(default_factory=time.time)
    user: str | None = None
    source: str | None = None
    program: list[str] = field(default_factory=list)
    config_path: str | None = None
    python_path: list[str] = field(default_factory=list)
    copies: list[str] = field(default_factory=list)
    mark: str | None = None

    def continuing(self, earlier: RunInfo, step: int, *, there: bool) -> RunInfo:
        """Return this run as the continuation of `earlier` from iteration `step` on.

        The result has the identity and the params of `earlier`, because MLflow keeps the first values of params. The
        properties of the machine are new.

        Args:
            earlier: the record of the earlier part of the run.
            step: the iteration.
            there: whether the run is tracked in the store of `earlier`, if `earlier` was tracked.
        """
        kept = {name: getattr(earlier, name) for name in ("id", "name", "start_time", "parent")}
        if there and earlier.uri is not None:  # else it was not tracked so far, and all of it is now
            kept |= {name: getattr(earlier, name) for name in ("experiment", "experiment_id", "uri")}
        first = earlier.settings or earlier.params
        latest = first | {key.rpartition("@")[0]: value for key, value in earlier.changes.items()}
        now = self.settings or self.params
        changed = {f"{key}@{step}": value for key, value in now.items() if latest.get(key, value) != value}
        params = {key: first.get(key, value) for key, value in self.params.items()} | earlier.params
        settings = self.settings and self.settings | first
        return dataclasses.replace(self, **kept, params=params, settings=settings, changes=earlier.changes | changed)

    def write(self, work_dir: str | Path) -> None:
        write_json(Path(work_dir) / FILE, redacted(dataclasses.asdict(self)))

    @classmethod
    def read(cls, work_dir: str | Path) -> Self:
        """Read the `run.json` of `work_dir`; raise TrainyardError if it is missing or cannot be read."""
        path = Path(work_dir) / FILE
        try:
            data = json.loads(path.read_bytes())
            own = {key: data[key] for key in _types() if key in data}
            for key, value in own.items():
                check_value(key, value, _types()[key])
            number("start_time", own.get("start_time", 0.0), at_least=-LAST_TIME, below=LAST_TIME)
            return cls(**own)
        except ConfigError as error:
            raise TrainyardError(f"{path} cannot be read: {error}") from error
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise TrainyardError(f"{path} cannot be read: {error}.") from error


@cache
def _types() -> dict[str, Any]:
    """Return the types of the fields of a `RunInfo`."""
    return get_type_hints(RunInfo)


def write_json(path: Path, data: Any, then: str | None = None) -> None:
    """Write a small JSON file so that a reader finds either the old or the new content, never a part.

    Args:
        path: the file.
        data: its content.
        then: the next step for the user after a full disk: see `trainyard.files.writing`.
    """
    part = path.with_name(temporary.marked(f".{path.name}."))
    with writing(path, part, then):
        part.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        part.replace(path)
