"""Prefect flows around the pipeline of dpo_core, tracked in MLflow. Nothing here imports torch."""

import os

# Prefect and MLflow read these when they are first imported. They turn off telemetry and console noise; a value that
# the user has set stays.
QUIET = {
    "DO_NOT_TRACK": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
for name, value in QUIET.items():
    os.environ.setdefault(name, value)
