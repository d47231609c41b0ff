"""Pipeline: checks before a run, the stages in order, and what each stage is called with."""
