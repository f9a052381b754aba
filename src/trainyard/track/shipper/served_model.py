"""Loader module of logged models, which MLflow imports to serve a model, as it imports `mlflow.pytorch`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import mlflow.pytorch
import numpy as np
import pandas as pd
import torch
from torch import nn

from trainyard.batch import to_device
from trainyard.models import TableEncoder
from trainyard.models.table_encoder import as_float32

PREDICT = "predict"
"""Key of the model's config with the function that computes the predictions."""

Predict = Callable[[nn.Module, Any], Any]


class ServedModel:
    """Model with a `predict` for MLflow, which computes the same predictions as the evaluation of the run.

    Args:
        net: the model, in eval mode.
        predict: a function that is called with the model and its inputs, which are tensors on the device of the model.
        device: the device of the model.
    """

    def __init__(self, net: nn.Module, predict: Predict, device: str = "cpu") -> None:
        self._net = net
        self._predict = predict
        self._device = torch.device(device)

    def get_raw_model(self) -> nn.Module:
        """Return the model, as `mlflow.pyfunc.PyFuncModel.get_raw_model` asks for it."""
        return self._net

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> Any:
        """Return predictions.

        Args:
            data: an array `[B, ...]`, a table, or a mapping of arrays by name. A model that encodes its training table
                uses the columns by name, including texts and missing values; any other model uses the columns in the
                given order.
            params: ignored; MLflow passes None if the signature has no params.

        Returns:
            Arrays in the structure of the model's output. For a table and an output of one array `[B]` or `[B, C]`: a
            table with the same index.
        """
        table = isinstance(data, pd.DataFrame)
        inputs = _tensors(_rows(self._net, data) if table else data)
        with torch.no_grad():
            output = _arrays(self._predict(self._net, to_device(inputs, self._device)))
        if table and isinstance(output, np.ndarray) and output.ndim in (1, 2):
            return pd.DataFrame(output, index=data.index)
        return output


class _Predictions(nn.Module):
    """The predictions of a model as the forward pass of a module, which `torch.export` can trace."""

    def __init__(self, net: nn.Module, predict: Predict) -> None:
        super().__init__()
        self.net = net
        self.predict = predict

    def forward(self, inputs: torch.Tensor) -> Any:
        return self.predict(self.net, inputs)


def exportable(
    net: nn.Module, example: np.ndarray[Any, Any], predict: str | None
) -> tuple[nn.Module, np.ndarray[Any, Any]]:
    """Return a module whose forward pass computes the predictions of `net`, and inputs for tracing it.

    Args:
        net: the model.
        example: the inputs of the model, `[B, ...]`. A single row is duplicated, because torch would treat 1 as a fixed
            batch size.
        predict: `"module:function"`; None: `net(inputs)`.
    """
    rows = np.concatenate([example, example]) if len(example) == 1 else example
    return (net if predict is None else _Predictions(net, function(predict)).eval()), rows


def function(path: str) -> Any:
    """Return the function that `"module:function"` names."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> ServedModel:
    """Load a model for MLflow, according to the protocol of loader modules.

    Args:
        path: the path of the model's data.
        model_config: `device`, as for `mlflow.pytorch`, and the function that computes the predictions, under
            `PREDICT`.
    """
    config = dict(model_config or {})
    predict = function(config.pop(PREDICT))
    plain = mlflow.pytorch._load_pyfunc(path, config)
    return ServedModel(plain.get_raw_model(), predict, plain.device)


def as_table(net: nn.Module, example: np.ndarray[Any, Any]) -> np.ndarray[Any, Any] | pd.DataFrame:
    """Return an input of the model in the form for serving: a table, if the model encodes the categories of a table."""
    encoder = _encoder(net)
    return example if encoder is None or not encoder.categories else encoder.decode_table(example)


def _encoder(net: nn.Module) -> TableEncoder | None:
    return next((module for module in net.modules() if isinstance(module, TableEncoder)), None)


def _rows(net: nn.Module, table: pd.DataFrame) -> np.ndarray[Any, Any]:
    """Return the rows of a table as an array, float32.

    Raises:
        ConfigError: a number is beyond the range of float32.
    """
    encoder = _encoder(net)
    if encoder is not None:
        return encoder.encode_table(table)
    with np.errstate(over="ignore"):
        rows: np.ndarray[Any, Any] = table.to_numpy(dtype=np.float32)
    if np.isinf(rows).any():
        as_float32(table.to_numpy(dtype=np.float64))  # refuses them, unless the table itself has infinite numbers
    return rows


def _tensors(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _tensors(value) for key, value in data.items()}
    return torch.from_numpy(np.ascontiguousarray(data))


def _arrays(output: Any) -> Any:
    if isinstance(output, torch.Tensor):
        return output.cpu().numpy()
    if isinstance(output, dict):
        return {key: _arrays(value) for key, value in output.items()}
    if isinstance(output, list | tuple):
        return [_arrays(value) for value in output]
    return output
