"""Faults injected into real runs: the same command must end with the same result, to the bit."""
