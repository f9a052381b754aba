"""Logging of models to MLflow."""

from __future__ import annotations

import functools
import importlib
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput
from mlflow.exceptions import MlflowException

from trainyard import __version__
from trainyard.track.run_info import RunInfo
from trainyard.track.shipper import user_code
from trainyard.track.shipper.sanitize import first_line
from trainyard.track.shipper.uploads import LeftOutError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd  # type: ignore[import-untyped,unused-ignore]
    from torch import nn

    from trainyard.track.shipper.model_records import PlannedModel

_MODEL_TAG = "trainyard.model"


@dataclass(frozen=True)
class BuiltModel:
    """Model that is to be logged.

    Args:
        net: the module, on the CPU, in eval mode.
        example: one input, either an array or the table on which the model was trained; None if the model accepts other
            inputs.
        predict: `"module:function"` for the served predictions; None: `net(inputs)`.
        code: the user's files that the model needs, by their paths relative to the folder from which they are imported.
        form: `pickle` or `export`: see `Journal.model`.
    """

    net: nn.Module
    example: np.ndarray | pd.DataFrame | None
    predict: str | None
    code: dict[Path, Path]
    form: str = "pickle"


def build_model(
    work_dir: Path, info: RunInfo, checkpoint: str, loader: str, predict: str | None, *, form: str = "pickle"
) -> BuiltModel:
    """Build the model of a run with its loader, in this process.

    Args:
        work_dir: the run's directory.
        info: the record of the run, with the folders from which its modules are imported.
        checkpoint: the path of the checkpoint, relative to `work_dir`.
        loader, predict, form: see `Journal.model`.

    Raises:
        LeftOutError: the run has not saved this checkpoint.
        Exception: any error of the loader.
    """
    if not (work_dir / checkpoint).exists():
        raise LeftOutError(f"there is no checkpoint {checkpoint}")
    import yaml  # type: ignore[import-untyped,unused-ignore]

    from trainyard.track.shipper.served_model import as_table, exportable

    sys.path[:0] = [folder for folder in info.python_path if folder not in sys.path]
    module, _, name = loader.partition(":")
    net, example = getattr(importlib.import_module(module), name)(work_dir, work_dir / checkpoint)
    config = None
    if info.config and (work_dir / info.config).exists():
        text = (work_dir / info.config).read_text(encoding="utf-8")
        config = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    code = user_code.files_of(user_code.modules_of(net, config), info.python_path)
    table = None if example is None else as_table(net, example)
    if form == "export" and example is None:
        raise LeftOutError("torch.export needs a model whose input is one array")
    if form == "export":
        return BuiltModel(*exportable(net.cpu().eval(), example, predict), None, {}, form)
    return BuiltModel(net.cpu().eval(), table, predict, code)


@functools.cache
def warm_model() -> None:
    """Load the modules for logging a model in advance: the first model takes two seconds, the next ones about 70 ms."""
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


def log_model(client: MlflowClient, experiment_id: str, run_id: str, planned: PlannedModel) -> str:
    """Log a model of the run, which `mlflow.pytorch.load_model("runs:/<run_id>/<name>")` opens; return its ID.

    The result is the same as with `mlflow.pytorch.log_model`, but the client is used directly: that function reads back
    the complete history of every metric. After a kill between its end and the record of it, that function would also
    log the model a second time.

    Args:
        planned: the model, which has not been built yet.

    Raises:
        LeftOutError: the model cannot be built, or this MLflow server does not support models.
    """
    import mlflow.pytorch
    import torch
    from mlflow.models import Model

    try:
        logged = client.search_logged_models(
            [experiment_id], f"source_run_id = '{run_id}' AND tags.`{_MODEL_TAG}` = '{planned.stamp}'"
        )
        model = next((each for each in logged if each.name == planned.name), None)
        if model is not None and model.status == "READY":
            return model.model_id
        if model is None:
            tags = {_MODEL_TAG: planned.stamp}
            model = client.create_logged_model(experiment_id, planned.name, run_id, tags)
    except MlflowException as error:
        if error.error_code == "ENDPOINT_NOT_FOUND":
            raise LeftOutError("this MLflow server does not store models; MLflow 3 is required") from error
        raise
    try:
        built = planned.build()
    except LeftOutError:
        raise
    except Exception as error:
        raise LeftOutError(f"{type(error).__name__}: {error}") from error
    exported = built.form == "export"
    own = [] if exported else ["cloudpickle", f"trainyard=={__version__}"]
    with tempfile.TemporaryDirectory() as folder:
        # Pickled by default, as torch users expect: a real module of its own class. "pt2", which needs no code to load,
        # takes 2 s to trace a small model, supports one input only, and does not support every model.
        save = functools.partial(
            mlflow.pytorch.save_model,
            built.net,
            f"{folder}/model",
            mlflow_model=Model(
                artifact_path=model.artifact_location,
                run_id=run_id,
                model_uuid=model.model_id,
                model_id=model.model_id,
            ),
            signature=_signature(built),
            input_example=built.example,
            code_paths=user_code.copy(built.code, Path(folder, "code")) or None,
            pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}", "numpy", *own],
            serialization_format="pt2" if exported else "pickle",
        )
        try:
            save()
        except OSError:  # such as a full temporary disk: tried again
            raise
        except Exception as error:
            if not exported:
                raise
            raise LeftOutError(
                f"torch.export cannot trace the model: {type(error).__name__}: {first_line(error)}"
            ) from error
        if built.predict is not None:
            _serve(f"{folder}/model", built.predict)
        client.log_model_artifacts(model.model_id, f"{folder}/model")
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=planned.step or 0)])
    return model.model_id


def _serve(model: str, predict: str) -> None:
    """Make MLflow serve a saved model with the function that computes its predictions."""
    from mlflow.models import Model
    from mlflow.pyfunc import FLAVOR_NAME, MAIN

    from trainyard.track.shipper import served_model

    saved = Model.load(model)
    flavor = saved.flavors[FLAVOR_NAME]
    flavor[MAIN] = served_model.__name__
    flavor["config"] = {**flavor.get("config", {}), served_model.PREDICT: predict}
    saved.save(f"{model}/MLmodel")


def _signature(built: BuiltModel) -> Any:
    """Return the signature of input and predictions; False, which stops MLflow from inferring it, if there is none."""
    from mlflow.models import infer_signature

    from trainyard.track.shipper.served_model import ServedModel, function

    if built.example is None:
        return False
    try:
        predict = (lambda net, inputs: net(inputs)) if built.predict is None else function(built.predict)
        return infer_signature(built.example, ServedModel(built.net, predict).predict(built.example))
    except Exception:  # the user's own code; the model works without a signature
        return False
