"""Prefect setup before Prefect is imported: connection check, authentication and console logging."""

import base64
import json
import os
from collections.abc import Mapping
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from dpo_core.errors import TrackingError

TIMEOUT_S = 5.0
AUTH_ERRORS = (401, 403)


def check_prefect() -> None:
    """Check the server of PREFECT_API_URL, if it is set.

    Raises TrackingError, within seconds, when the server does not answer or rejects the credentials.
    """
    api = os.environ.get("PREFECT_API_URL")
    if not api:
        return
    host = urlsplit(api).hostname
    try:
        with urlopen(Request(f"{api.rstrip('/')}/admin/version", headers=auth_header()), timeout=TIMEOUT_S) as response:
            response.read()
    except HTTPError as error:
        if error.code in AUTH_ERRORS:
            raise TrackingError(
                f"The Prefect server at {host} rejects these credentials (HTTP {error.code}).",
                "PREFECT_API_AUTH_STRING is user:password as the server requires.",
                "Set it, or correct it.",
            ) from None
        raise unreachable_error(host, error) from None
    except (OSError, ValueError) as error:
        raise unreachable_error(host, error) from None


def post(path: str, body: Mapping[str, Any]) -> None:
    """POST JSON to the server, if there is one, without Prefect's client, which takes seconds to import.

    Raises TrackingError when the server does not accept it.
    """
    api = os.environ.get("PREFECT_API_URL")
    if not api:
        return
    headers = {"Content-Type": "application/json", **auth_header()}
    try:
        with urlopen(Request(f"{api.rstrip('/')}/{path}", json.dumps(body).encode(), headers), timeout=TIMEOUT_S):
            return
    except OSError as error:
        raise unreachable_error(urlsplit(api).hostname, error) from None


def auth_header() -> dict[str, str]:
    """Return the header that Prefect's own client sends, empty without credentials."""
    credentials = os.environ.get("PREFECT_API_AUTH_STRING")
    return {"Authorization": f"Basic {base64.b64encode(credentials.encode()).decode()}"} if credentials else {}


def unreachable_error(host: str | None, error: Exception) -> TrackingError:
    """Return the error for a server that does not answer."""
    return TrackingError(
        f"The Prefect server at {host} does not answer ({getattr(error, 'reason', error)}).",
        "PREFECT_API_URL is the address of a running server's API (http://host:4200/api).",
        "Start it (prefect server start), correct the address, or unset it: the flow then starts its own.",
    )


def configure_console(debug: bool) -> None:
    """Keep Prefect's log off the console unless ``debug``; give its temporary server time on a slow machine."""
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "DEBUG" if debug else "CRITICAL")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
