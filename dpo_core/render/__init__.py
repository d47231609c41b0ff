"""Renderers: conversations to token ids, and replies back to messages."""
