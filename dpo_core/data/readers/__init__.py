"""Readers of dataset rows: the hub, JSONL, tables."""
