"""A checkpoint as a model that MLflow loads and serves, and what was measured of it."""

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
from flows.registry.promotion_rule import ModelMeasurements, beyond_noise

WEIGHTS = "artifacts/checkpoint"
MEASURED, BASE_MEASURED = "measured.json", "base_measured.json"
# Settings under which an answer to the same prompt may be another one.
TERMS = ("max_new_tokens", "eval_temperature")
SERVING = Path(__file__).with_name("served_model.py")

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


def upload(client: MlflowClient, model: LoggedModel, checkpoint: Checkpoint) -> None:
    """Everything that loading the model needs.

    MLflow's own way copies the weights to a temporary directory twice; here they go to the store straight from the
    checkpoint, into the place that a model saved with a stand-in keeps for them.
    """
    identity = model.model_id
    # It would tell that there is no pip, as in our images, which a model whose packages are named does not need.
    logging.getLogger("mlflow.utils.environment").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as temporary:
        stand_in, saved = Path(temporary, "checkpoint"), Path(temporary, "model")
        stand_in.mkdir()
        shutil.copyfile(checkpoint.path / CHECKPOINT_METADATA, stand_in / CHECKPOINT_METADATA)
        mlflow.pyfunc.save_model(
            saved,
            python_model=str(SERVING),
            artifacts={"checkpoint": str(stand_in)},
            code_paths=[str(Path(dpo_core.__file__).parent)],
            signature=SIGNATURE,
            input_example=EXAMPLE,
            pip_requirements=[f"{package}=={installed(package).partition('+')[0]}" for package in REQUIREMENTS],
            mlflow_model=Model(model.artifact_location, model.source_run_id, model_uuid=identity, model_id=identity),
        )
        client.log_model_artifacts(identity, str(saved))
    client.log_model_artifacts(identity, str(checkpoint.path), WEIGHTS)


def upload_measured(client: MlflowClient, identity: str, measured: Mapping[str, ModelMeasurements]) -> None:
    """What was measured of a model, by file name."""
    with tempfile.TemporaryDirectory() as temporary:
        for name, one in measured.items():
            Path(temporary, name).write_text(json.dumps(asdict(one), indent=1))
        client.log_model_artifacts(identity, temporary)


def measurements(result: EvalResult, name: str) -> ModelMeasurements:
    """What the rule of promotion needs of an evaluation; a prompt without a verdict is left out."""
    outcomes = [json.loads(line) for line in (result.path / "outcomes.jsonl").read_text().splitlines()]
    terms = {"IFEval": result.tasks.get(IFEVAL, "")} | {term: f"{result.settings[term]:g}" for term in TERMS}
    metrics = result.metrics
    return ModelMeasurements(
        name=name,
        prompts_fingerprint=result.prompts_fingerprint,
        followed={str(one["key"]): all(one["strict"]) for one in outcomes if one.get("error") is None},
        pairs_fingerprint=result.pairs_fingerprint,
        accuracy=metrics["test/accuracy"],
        accuracy_low=metrics["test/accuracy_low"],
        accuracy_high=metrics["test/accuracy_high"],
        num_pairs=int(metrics["test/num_pairs"]),
        asked=terms if outcomes else {},
        margin_noise=metrics.get("test/margin_noise", 0.0),
        beyond_noise=beyond_noise(metrics),
    )
