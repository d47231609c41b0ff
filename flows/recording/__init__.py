"""Recording of a training run in MLflow: while it trains, what it leaves, and again later."""
