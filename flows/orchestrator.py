"""Prefect before it is imported: whether its server answers, and what it says on the terminal."""

import os
from urllib.parse import urlsplit
from urllib.request import urlopen

from dpo_core.errors import TrackingError

PATIENCE_S = 5.0


def check_prefect() -> None:
    """Raises TrackingError, within seconds, when PREFECT_API_URL names a server that does not answer."""
    api = os.environ.get("PREFECT_API_URL")
    if not api:
        return
    try:
        with urlopen(f"{api.rstrip('/')}/health", timeout=PATIENCE_S) as answer:
            answer.read()
    except (OSError, ValueError) as error:
        raise TrackingError(
            f"The Prefect server at {urlsplit(api).hostname} does not answer ({getattr(error, 'reason', error)}).",
            "PREFECT_API_URL is the address of a running server's API (http://host:4200/api).",
            "Start it (prefect server start), mend the address, or unset it: the flow then brings its own.",
        ) from None


def quieten(debug: bool) -> None:
    """Prefect's own lines go to its UI only; a slow machine gets time for the server that a flow brings along."""
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "DEBUG" if debug else "CRITICAL")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
