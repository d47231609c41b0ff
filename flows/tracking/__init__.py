"""MLflow tracking: client, run, journal follower, replay, system metrics, lineage."""
