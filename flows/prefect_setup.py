"""Prefect before it is imported: whether its server answers and lets us in, and what it says on the terminal."""

import base64
import json
import os
from collections.abc import Mapping
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from dpo_core.errors import TrackingError

PATIENCE_S = 5.0
REFUSALS = (401, 403)


def check_prefect() -> None:
    """Raises TrackingError, within seconds, when PREFECT_API_URL names a server that does not answer or refuses us."""
    api = os.environ.get("PREFECT_API_URL")
    if not api:
        return
    host = urlsplit(api).hostname
    try:
        with urlopen(Request(f"{api.rstrip('/')}/admin/version", headers=login()), timeout=PATIENCE_S) as answer:
            answer.read()
    except HTTPError as error:
        if error.code in REFUSALS:
            raise TrackingError(
                f"The Prefect server at {host} does not take these credentials (HTTP {error.code}).",
                "PREFECT_API_AUTH_STRING is the user:password that the server asks for.",
                "Set it, or mend it.",
            ) from None
        raise unreachable(host, error) from None
    except (OSError, ValueError) as error:
        raise unreachable(host, error) from None


def post(path: str, body: Mapping[str, Any]) -> None:
    """Give the server, if there is one, something to keep; without Prefect's client, which takes seconds to import.

    Raises TrackingError when the server does not take it.
    """
    api = os.environ.get("PREFECT_API_URL")
    if not api:
        return
    headers = {"Content-Type": "application/json", **login()}
    try:
        with urlopen(Request(f"{api.rstrip('/')}/{path}", json.dumps(body).encode(), headers), timeout=PATIENCE_S):
            return
    except OSError as error:
        raise unreachable(urlsplit(api).hostname, error) from None


def login() -> dict[str, str]:
    """The header that Prefect's own client would send."""
    known = os.environ.get("PREFECT_API_AUTH_STRING")
    return {"Authorization": f"Basic {base64.b64encode(known.encode()).decode()}"} if known else {}


def unreachable(host: str | None, error: Exception) -> TrackingError:
    """The error for a server that is not there."""
    return TrackingError(
        f"The Prefect server at {host} does not answer ({getattr(error, 'reason', error)}).",
        "PREFECT_API_URL is the address of a running server's API (http://host:4200/api).",
        "Start it (prefect server start), mend the address, or unset it: the flow then brings its own.",
    )


def quieten(debug: bool) -> None:
    """Prefect's own lines go to its UI only; a slow machine gets time for the server that a flow brings along."""
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "DEBUG" if debug else "CRITICAL")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
