"""Logging of models to MLflow."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput
from mlflow.exceptions import MlflowException

from trainyard.track.shipper.uploads import LeftOutError

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

_MODEL_TAG = "trainyard.model"

Build = Callable[[], "tuple[nn.Module, np.ndarray | None]"]


@functools.cache
def warm_model() -> None:
    """Load what logging a model will need: the first model takes two seconds, the next ones some 70 ms."""
    import mlflow.pytorch
    import torch

    with tempfile.TemporaryDirectory() as folder:
        mlflow.pytorch.save_model(
            torch.nn.Identity(),
            f"{folder}/model",
            signature=False,
            pip_requirements=["torch"],
            serialization_format="pickle",
        )


def log_model(client: MlflowClient, experiment_id: str, run_id: str, build: Build, stamp: str) -> None:
    """Log the run's model, which `mlflow.pytorch.load_model("runs:/<run_id>/model")` opens.

    It records what `mlflow.pytorch.log_model` does, through the client: that function reads back the whole history
    of every metric, and would log the model again after a kill between its end and the record of it.

    Args:
        build: returns the module and an input example.
        stamp: distinguishes this model from others of the same run.

    Raises:
        LeftOutError: it cannot be built, or this MLflow server does not support models.
    """
    import mlflow.pytorch
    import torch
    from mlflow.models import Model

    try:
        logged = client.search_logged_models(
            [experiment_id], f"source_run_id = '{run_id}' AND tags.`{_MODEL_TAG}` = '{stamp}'"
        )
        if logged and logged[0].status == "READY":
            return
        tags = {_MODEL_TAG: stamp}
        model = logged[0] if logged else client.create_logged_model(experiment_id, "model", run_id, tags)
    except MlflowException as error:
        if error.error_code == "ENDPOINT_NOT_FOUND":
            raise LeftOutError("this MLflow server keeps no models; it needs MLflow 3") from error
        raise
    try:
        net, example = build()
        net = net.cpu().eval()
    except Exception as error:
        raise LeftOutError(f"{type(error).__name__}: {error}") from error
    with tempfile.TemporaryDirectory() as folder:
        # Pickled, as torch users expect: a real module of its own class. "pt2", which needs no code to load, takes
        # 2 s to trace a small model, supports one input only, and does not support every model.
        mlflow.pytorch.save_model(
            net,
            f"{folder}/model",
            mlflow_model=Model(
                artifact_path=model.artifact_location,
                run_id=run_id,
                model_uuid=model.model_id,
                model_id=model.model_id,
            ),
            signature=_signature(net, example),
            input_example=example,
            pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}", "numpy", "cloudpickle"],
            serialization_format="pickle",
        )
        client.log_model_artifacts(model.model_id, f"{folder}/model")
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])


def _signature(net: nn.Module, example: np.ndarray | None) -> Any:
    """Return the signature of input and output if both are one array; False stops MLflow from inferring it."""
    import torch
    from mlflow.models import infer_signature

    if example is None:
        return False
    try:
        with torch.inference_mode():
            output = net(torch.from_numpy(example))
        return infer_signature(example, output.numpy())
    except Exception:  # the user's own code; the model works without a signature
        return False
