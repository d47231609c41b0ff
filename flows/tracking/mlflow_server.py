"""MLflow server: address, reachability, login and pages, without importing MLflow, so that errors come at once."""

import base64
import os
import re
import socket
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

from dpo_core.config.recipe import Recipe, TrackSettings
from dpo_core.config.redact import hide_password
from dpo_core.errors import TrackingError

DEFAULT_STORE = Path("mlruns/mlflow.db")
SQLITE = "sqlite:///"
TIMEOUT_S = 5.0
AUTH_ERRORS = (401, 403)
DEFAULT_PORTS = {"http": 80, "https": 443}
MIN_VERSION = (3, 17)  # as in pyproject.toml: a client needs a server that is not older
SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")


def tracking_uri(track: TrackSettings) -> str:
    """Return the store's URI: the setting, else MLFLOW_TRACKING_URI, else sqlite in ./mlruns, with an absolute path.

    Raises TrackingError for a plain directory, which MLflow no longer supports.
    """
    uri = track.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{DEFAULT_STORE}"
    if uri.startswith(SQLITE):
        return f"{SQLITE}{Path(uri.removeprefix(SQLITE)).expanduser().resolve()}"
    if re.split(r"[:+]", uri, maxsplit=1)[0] not in SCHEMES:
        raise TrackingError(
            f"tracking_uri={uri} is not a store that MLflow 3 writes to.",
            "It must be the URL of a server, or a database such as sqlite:///mlruns/mlflow.db.",
            "Leave it out for the default store.",
        )
    return uri.rstrip("/")


def without_password(recipe: Recipe) -> Recipe:
    """Move a tracking URI with a password from the recipe to this process's MLFLOW_TRACKING_URI.

    The recipe is a flow parameter, and Prefect stores parameters.
    """
    uri = recipe.track.tracking_uri
    if not uri or hide_password(uri) == uri:
        return recipe
    os.environ["MLFLOW_TRACKING_URI"] = uri
    return recipe.model_copy(update={"track": recipe.track.model_copy(update={"tracking_uri": None})})


def is_server(uri: str) -> bool:
    """Whether the store is an HTTP server, whose address opens in a browser."""
    return uri.startswith(("http://", "https://"))


def database_path(uri: str) -> Path | None:
    """Return the file of a sqlite store, None for another store."""
    return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


def artifact_root(uri: str, experiment: str) -> str | None:
    """Return the artifact directory of a new experiment: beside a sqlite database, None where a server decides."""
    file = database_path(uri)
    return str(file.parent / "artifacts" / re.sub(r"[^\w.-]+", "_", experiment)) if file else None


def check_server(uri: str) -> None:
    """Check the server at an HTTP address.

    Raises TrackingError, within seconds, when it does not answer as MLflow does, rejects the login or is too old.
    """
    if not is_server(uri):
        return
    try:
        with urlopen(f"{hide_password(uri)}/health", timeout=TIMEOUT_S) as response:
            body = response.read(40)
            state = f"answers with {body!r}" if response.status == 200 else f"answers HTTP {response.status}"
            healthy = response.status == 200 and body == b"OK"
    except HTTPError as error:
        state, healthy = f"answers HTTP {error.code} to /health", False
    except (OSError, ValueError) as error:
        state, healthy = f"does not answer ({getattr(error, 'reason', error)})", False
    if not healthy:
        raise TrackingError(
            f"{hide_password(uri)} {state}.",
            "tracking_uri (or MLFLOW_TRACKING_URI) must be the address of a running MLflow server.",
            "Start the server, correct the address, or unset it to use the store in ./mlruns.",
        )
    check_login_and_version(uri)


def check_login_and_version(uri: str) -> None:
    """Check login and version of a server; a server without a readable version is accepted.

    Raises TrackingError when it rejects the credentials, or is older than ``MIN_VERSION``.
    """
    try:
        with urlopen(Request(f"{hide_password(uri)}/version", headers=auth_header(uri)), timeout=TIMEOUT_S) as response:
            version = response.read(40).decode(errors="replace").strip()
    except HTTPError as error:
        if error.code in AUTH_ERRORS and not has_other_login():
            raise TrackingError(
                f"The MLflow server at {hide_password(uri)} rejects these credentials (HTTP {error.code}).",
                "It requires MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN.",
                "Set them, or correct them.",
            ) from None
        return
    except OSError:
        return
    match = re.match(r"(\d+)\.(\d+)", version)
    if match and (int(match[1]), int(match[2])) < MIN_VERSION:
        oldest = ".".join(map(str, MIN_VERSION))
        raise TrackingError(
            f"The MLflow server at {hide_password(uri)} is version {version}.",
            f"This project needs MLflow {oldest} or newer.",
            f"Install mlflow>={oldest} there, and upgrade its database: mlflow db upgrade.",
        )


def auth_header(uri: str) -> dict[str, str]:
    """Return the header that MLflow's own client sends: from the address, else from the environment."""
    parts = urlsplit(uri)
    user = unquote(parts.username or "") or os.environ.get("MLFLOW_TRACKING_USERNAME")
    password = unquote(parts.password or "") or os.environ.get("MLFLOW_TRACKING_PASSWORD")
    if user and password:
        return {"Authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token else {}


def has_other_login() -> bool:
    """Whether MLflow's client may have another login than :func:`auth_header`: from its file, or from a plugin."""
    plugins = any(os.environ.get(name) for name in ("MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4"))
    return plugins or (Path.home() / ".mlflow" / "credentials").exists()


def is_down(uri: str) -> bool:
    """Whether the host exists and refuses connections, as while a server restarts."""
    parts = urlsplit(uri)
    if not is_server(uri) or not parts.hostname:
        return False
    try:
        with socket.create_connection((parts.hostname, parts.port or DEFAULT_PORTS[parts.scheme]), TIMEOUT_S):
            return False
    except socket.gaierror:
        return False
    except OSError:
        return True


def check_port(host: str, port: int) -> None:
    """Raises TrackingError when the port is in use."""
    with socket.socket() as probe:
        # As servers do: a port whose last connections are still closing counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise TrackingError(
                f"Port {port} of {host} cannot be used: {error.strerror.lower() if error.strerror else error}.",
                "The MLflow UI needs a free port.",
                f"Stop the process that uses it, or choose another: dpo ui --port {port + 1}.",
            ) from None


def experiment_page(server: str, experiment_id: str, view: str | None = None) -> str:
    """Return the address of an experiment's charts; the parameters keep the registry in the menu of MLflow 3.

    ``view`` is the key of a shared view of the experiment.
    """
    page = f"{server}/#/experiments/{experiment_id}/runs?workflowType=machine_learning&compareRunsMode=CHART"
    return f"{page}&viewStateShareKey={view}" if view else page


def run_page(server: str, experiment_id: str, run_id: str) -> str:
    """Return the address of a run's page."""
    return f"{server}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"
