"""Faults injected into real runs: whatever happens, the same command ends at the same bits."""
