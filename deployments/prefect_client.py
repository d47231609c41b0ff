"""Prefect client for the server at PREFECT_API_URL, with errors as TrackingError."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import PrefectHTTPStatusError

from dpo_core.errors import TrackingError
from flows.prefect_setup import check_prefect


def check_server() -> None:
    """Raises TrackingError when PREFECT_API_URL is not set, or the server does not answer or refuses the login."""
    if not os.environ.get("PREFECT_API_URL"):
        raise TrackingError(
            "PREFECT_API_URL is not set.",
            "Deployments live on a Prefect server.",
            "Set it (http://host:4200/api), or start a server on this computer: python -m deployments.servers.",
        )
    check_prefect()


@contextmanager
def connect() -> Iterator[SyncPrefectClient]:
    """A client of the server.

    Raises TrackingError as :func:`check_server` does, or when the server refuses a request or goes away.
    """
    check_server()
    try:
        with get_client(sync_client=True) as client:
            yield client
    except PrefectHTTPStatusError as error:
        raise TrackingError(
            f"The Prefect server refused a request: HTTP {error.response.status_code}, {error.response.text[:300]}.",
            "",
            "",
        ) from error
    except httpx.HTTPError as error:
        raise TrackingError(
            f"The Prefect server stopped answering: {error!r}.", "", "Try again when it is back."
        ) from error
