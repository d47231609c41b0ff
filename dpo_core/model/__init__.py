"""Weights and tokenizers: where they are, how they load, how they are written."""
