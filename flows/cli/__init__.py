"""Command line ``dpo``."""
