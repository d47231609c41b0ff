"""Command line of ``python -m dpo_core``."""
