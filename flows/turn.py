"""Whose turn it is on the GPU: a slot of Prefect's limit ``gpu``, where the server has one (dpo deploy makes it)."""

from collections.abc import Iterator
from contextlib import contextmanager

from prefect.concurrency.sync import concurrency

LIMIT = "gpu"
STAGES = {"warm_start", "score_reference", "train", "evaluate"}
LEASE_S = 60.0


@contextmanager
def turn(stage: str) -> Iterator[None]:
    """Wait for a slot when the stage computes on a GPU, and hold it while it does.

    A holder that is killed loses it after ``LEASE_S`` seconds. A server that is away for a while takes it from nobody.
    """
    if stage not in STAGES:
        yield
        return
    with concurrency(LIMIT, occupy=1, lease_duration=LEASE_S, strict=False):
        yield
