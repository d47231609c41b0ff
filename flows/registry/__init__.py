"""MLflow model registry: versions, logged models, gates, promotion, approval."""
