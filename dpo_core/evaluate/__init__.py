"""Measuring a model: held-out preferences and instruction following."""
