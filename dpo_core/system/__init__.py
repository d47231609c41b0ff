"""The machine and this process: GPUs, host memory, allocators, progress lines, other interpreters."""
