"""Checkpoints: state, writer, run directory, lock, journal."""
