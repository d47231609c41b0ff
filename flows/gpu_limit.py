"""GPU limit: a stage that uses a GPU holds a slot of Prefect's concurrency limit ``gpu`` (made by dpo deploy)."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx
from prefect.concurrency.sync import concurrency
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL

from dpo_core.errors import TrackingError
from dpo_core.stages.stage import Stage
from flows.prefect_setup import check_prefect

LIMIT = "gpu"
LEASE_S = 60.0
AWAY_S, POLL_S = 600.0, 2.0


@contextmanager
def gpu_slot(stage: Stage[Any]) -> Iterator[None]:
    """Wait for a slot when the stage computes on a GPU, and hold it while it does.

    A server of this run's own has no such limit and is not asked: its sqlite makes the question wait for seconds.
    A holder that is killed loses it after ``LEASE_S`` seconds. A server that is away takes it from nobody; it is waited
    for when a slot is taken, and after a good end when it is given back.

    Raises TrackingError when the server stays away.
    """
    if not stage.uses_gpu or not PREFECT_API_URL.value():
        yield
        return
    slot = concurrency(LIMIT, occupy=1, lease_duration=LEASE_S, strict=False)
    await_server()
    slot.__enter__()
    try:
        yield
        await_server()
    finally:
        # A slot that cannot be given back is free when its lease ends: what the stage made is not lost for that.
        with suppress(httpx.HTTPError, PrefectHTTPStatusError):
            slot.__exit__(None, None, None)


def await_server() -> None:
    """Return when Prefect's server answers. Raises TrackingError when it is away for longer than ``AWAY_S`` seconds."""
    deadline = time.monotonic() + AWAY_S
    while True:
        try:
            check_prefect()
        except TrackingError:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_S)
        else:
            return
