"""A real MLflow store for every test."""

import shutil
import socket
import warnings
from pathlib import Path

import pytest

with warnings.catch_warnings():
    # MLflow warns about type hints of its own while it is imported, and hides that from everyone but a strict filter.
    warnings.simplefilter("ignore")
    import flows.registry  # noqa: F401

from dpo_core.config.recipe import PromoteSettings, Recipe, TrackSettings, TrainSettings
from flows.registry.versions import Candidate
from flows.tracking import mlflow_run
from tests.flows import fake


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An initialised sqlite file: making its tables takes seconds, copying it none."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow_run.connect(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def track(empty_store: Path, tmp_path: Path) -> TrackSettings:
    """Settings of a store of the test's own."""
    place = tmp_path / "mlruns"
    place.mkdir()
    shutil.copyfile(empty_store, place / "mlflow.db")
    return TrackSettings(tracking_uri=f"sqlite:///{place}/mlflow.db", experiment_name="tests")


@pytest.fixture
def recipe(track: TrackSettings) -> Recipe:
    return Recipe(
        track=track,
        train=TrainSettings(learning_rate=3e-5, batch_size=32),
        promote=PromoteSettings(registered_model_name="dpo-test"),
    )


@pytest.fixture
def run(recipe: Recipe) -> mlflow_run.RunHandle:
    return mlflow_run.open_run(recipe.track, recipe, "a-run", "f00d")


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def candidate(tmp_path: Path) -> Candidate:
    return fake.candidate(tmp_path)
