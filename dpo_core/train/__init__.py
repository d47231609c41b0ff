"""The optimisation: losses, log-probabilities, the loop, checkpoints and the journal."""
