"""Data sets of a run as MLflow inputs."""

from __future__ import annotations

import json
import re
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag

_CONTEXT = "mlflow.data.context"
_MAX_TEXT = 60_000  # characters of the source, for which MLflow has 65535 bytes
_SHAPE = re.compile(r"(\w+) \[(.*)\]")


def dataset_input(given: dict[str, Any]) -> DatasetInput:
    """Return a data set of `Journal.inputs` in the form of MLflow.

    Its source is its part of the config, or the folder or file that this part names as `path`.
    """
    source = given["source"]
    path = source.get("path")
    where = {"uri": path} if path else {"tags": source}
    profile = {"num_rows": given.get("rows"), "digest_covers": given.get("covers")}
    return DatasetInput(
        Dataset(
            name=given["name"],
            digest=given["digest"],
            source_type="local" if path else "code",
            source=json.dumps(where)[:_MAX_TEXT],
            schema=_schema(given.get("shapes") or {}),
            profile=json.dumps({key: value for key, value in profile.items() if value is not None}),
        ),
        [InputTag(_CONTEXT, given["context"])],
    )


def _schema(shapes: dict[str, str]) -> str | None:
    """Return the schema of tensors by name, each in the form `float32 [1, 8, 8]`."""
    specs: list[dict[str, Any]] = []
    for name, shape in shapes.items():
        if found := _SHAPE.fullmatch(shape):
            size = [-1, *(int(number) for number in found[2].split(",") if number.strip())]
            specs.append({"name": name, "type": "tensor", "tensor-spec": {"dtype": found[1], "shape": size}})
    if not specs:
        return None
    if all(name.isdigit() for name in shapes):  # a tuple: MLflow names all tensors or none
        for spec in (specs := specs[:1]):
            del spec["name"]
    return json.dumps({"mlflow_tensorspec": {"features": json.dumps(specs), "targets": None}})
