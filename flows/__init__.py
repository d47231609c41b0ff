"""The river under Prefect, with MLflow as its record. Nothing here imports torch."""

import os

# Both tools read these when they are first imported: no telemetry, no chatter. A user's own setting stands.
QUIET = {
    "DO_NOT_TRACK": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
for name, value in QUIET.items():
    os.environ.setdefault(name, value)
