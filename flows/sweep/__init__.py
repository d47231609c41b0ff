"""Sweeps: plan, flow, member processes, early stopping, report."""
