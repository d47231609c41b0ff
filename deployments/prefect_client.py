"""The Prefect server that PREFECT_API_URL names, as a client that tells in our words what goes wrong."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import PrefectHTTPStatusError

from dpo_core.errors import TrackingError
from flows.prefect_setup import check_prefect


def check() -> None:
    """Raises TrackingError when no server is named, or it does not answer, or does not let us in."""
    if not os.environ.get("PREFECT_API_URL"):
        raise TrackingError(
            "PREFECT_API_URL is not set.",
            "Deployments live on a Prefect server.",
            "Name one (http://host:4200/api), or start one here: python -m deployments.servers.",
        )
    check_prefect()


@contextmanager
def connected() -> Iterator[SyncPrefectClient]:
    """A client of the server. Raises TrackingError as :func:`check` does, or when the server refuses a request."""
    check()
    try:
        with get_client(sync_client=True) as client:
            yield client
    except PrefectHTTPStatusError as error:
        raise TrackingError(
            f"The Prefect server refuses: HTTP {error.response.status_code}, {error.response.text[:300]}.", "", ""
        ) from error
    except httpx.HTTPError as error:
        raise TrackingError(f"The Prefect server went away ({error!r}).", "", "Try again when it is back.") from error
