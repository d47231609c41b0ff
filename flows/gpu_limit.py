"""GPU limit: a stage that uses a GPU holds a slot of Prefect's concurrency limit ``gpu``, which dpo deploy creates."""

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
MAX_WAIT_S, POLL_S = 600.0, 2.0


@contextmanager
def gpu_slot(stage: Stage[Any]) -> Iterator[None]:
    """Acquire a slot for a stage that uses a GPU, and hold it while the block runs.

    Without PREFECT_API_URL the flow runs its own temporary server, which has no such limit: no slot is acquired, since
    the request alone takes seconds on sqlite. The slot of a killed process is free again after ``LEASE_S`` seconds.
    While the server is unavailable all slots stay held. Acquiring waits for the server, and so does releasing after the
    block succeeded.

    Raises TrackingError when the server does not answer for ``MAX_WAIT_S`` seconds.
    """
    if not stage.uses_gpu or not PREFECT_API_URL.value():
        yield
        return
    slot = concurrency(LIMIT, occupy=1, lease_duration=LEASE_S, strict=False)
    wait_for_server()
    slot.__enter__()
    try:
        yield
        wait_for_server()
    finally:
        # A slot that cannot be released expires with its lease; the stage's output must not be lost because of it.
        with suppress(httpx.HTTPError, PrefectHTTPStatusError):
            slot.__exit__(None, None, None)


def wait_for_server() -> None:
    """Return when Prefect's server answers.

    Raises TrackingError when it does not answer for ``MAX_WAIT_S`` seconds.
    """
    deadline = time.monotonic() + MAX_WAIT_S
    while True:
        try:
            check_prefect()
        except TrackingError:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_S)
        else:
            return
