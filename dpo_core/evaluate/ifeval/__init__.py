"""IFEval: prompts, official checkers, and the inspect-ai task."""
