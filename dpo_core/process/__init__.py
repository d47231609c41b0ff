"""Stage processes: run a stage in a process of its own unless its output is cached."""
