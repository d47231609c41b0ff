"""Logged model: a checkpoint packaged so that MLflow can load and serve it, with its measurements."""

import json
import logging
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version as installed
from pathlib import Path

import mlflow.pyfunc
from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import Array, ColSpec, DataType, Object, ParamSchema, ParamSpec, Property, Schema

import dpo_core
from dpo_core.evaluate.task_names import IFEVAL
from dpo_core.records import Checkpoint, EvalResult
from dpo_core.render.registry import CHECKPOINT_METADATA
from flows.registry.promotion_rule import ModelMeasurements, accuracy_beyond_noise

WEIGHTS = "artifacts/checkpoint"
MEASUREMENTS_FILE, BASE_MEASUREMENTS_FILE = "measured.json", "base_measured.json"
# Settings that change the response to the same prompt.
GENERATION_SETTINGS = ("max_new_tokens", "eval_temperature")
SERVED_MODEL = Path(__file__).with_name("served_model.py")

# What loading and serving a checkpoint imports; the versions are those of the environment that trained it.
REQUIREMENTS = (
    "huggingface_hub",
    "jinja2",
    "mlflow",
    "pyarrow",
    "pydantic",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
)

EXAMPLE = {"messages": [{"role": "user", "content": "Once upon a time"}]}
MESSAGE = Object([Property("role", DataType.string), Property("content", DataType.string)])
SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(Array(MESSAGE), name="messages")]),
    outputs=Schema([ColSpec(DataType.string)]),
    params=ParamSchema(
        [
            ParamSpec("max_new_tokens", DataType.long, 256),
            ParamSpec("temperature", DataType.double, 0.0),
            ParamSpec("seed", DataType.long, 0),
        ]
    ),
)


def upload_model(client: MlflowClient, model: LoggedModel, checkpoint: Checkpoint) -> None:
    """Upload the weights and everything else that loading the model needs.

    MLflow's own upload copies the weights to a temporary directory twice. Here a model is saved with a placeholder, and
    the weights are uploaded from the checkpoint into the placeholder's directory.
    """
    model_id = model.model_id
    # It warns when pip is missing, as in our images; a model with pinned requirements does not need pip.
    logging.getLogger("mlflow.utils.environment").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as temporary:
        placeholder, saved = Path(temporary, "checkpoint"), Path(temporary, "model")
        placeholder.mkdir()
        shutil.copyfile(checkpoint.path / CHECKPOINT_METADATA, placeholder / CHECKPOINT_METADATA)
        mlflow.pyfunc.save_model(
            saved,
            python_model=str(SERVED_MODEL),
            artifacts={"checkpoint": str(placeholder)},
            code_paths=[str(Path(dpo_core.__file__).parent)],
            signature=SIGNATURE,
            input_example=EXAMPLE,
            pip_requirements=[f"{package}=={installed(package).partition('+')[0]}" for package in REQUIREMENTS],
            mlflow_model=Model(model.artifact_location, model.source_run_id, model_uuid=model_id, model_id=model_id),
        )
        client.log_model_artifacts(model_id, str(saved))
    client.log_model_artifacts(model_id, str(checkpoint.path), WEIGHTS)


def upload_measurements(client: MlflowClient, model_id: str, measured: Mapping[str, ModelMeasurements]) -> None:
    """Upload measurements, each as the JSON file of its key."""
    with tempfile.TemporaryDirectory() as temporary:
        for name, measurement in measured.items():
            Path(temporary, name).write_text(json.dumps(asdict(measurement), indent=1))
        client.log_model_artifacts(model_id, temporary)


def measurements(result: EvalResult, name: str) -> ModelMeasurements:
    """Return the measurements of an evaluation that promotion compares; a prompt that failed is left out."""
    outcomes = [json.loads(line) for line in (result.path / "outcomes.jsonl").read_text().splitlines()]
    conditions = {"IFEval": result.tasks.get(IFEVAL, "")} | {
        name: f"{result.settings[name]:g}" for name in GENERATION_SETTINGS
    }
    metrics = result.metrics
    return ModelMeasurements(
        name=name,
        prompts_fingerprint=result.prompts_fingerprint,
        followed={str(row["key"]): all(row["strict"]) for row in outcomes if row.get("error") is None},
        pairs_fingerprint=result.pairs_fingerprint,
        accuracy=metrics["test/accuracy"],
        accuracy_low=metrics["test/accuracy_low"],
        accuracy_high=metrics["test/accuracy_high"],
        num_pairs=int(metrics["test/num_pairs"]),
        asked=conditions if outcomes else {},
        margin_noise=metrics.get("test/margin_noise", 0.0),
        beyond_noise=accuracy_beyond_noise(metrics),
    )
