"""Training process: setup, compilation, signals, watchdogs, console, FLOPs."""
