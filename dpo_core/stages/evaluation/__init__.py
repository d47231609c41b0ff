"""Stages of evaluation besides ``evaluate``: prompts, answers to tasks, a judge, and checks before training."""
