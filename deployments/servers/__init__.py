"""Local servers: Postgres, MLflow, Prefect and a worker on this computer."""
