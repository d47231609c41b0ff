"""Where MLflow is, and whether it answers: known without importing it, so that a wrong address is told at once."""

import base64
import os
import re
import socket
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

from dpo_core.config.recipe import Recipe, TrackSettings
from dpo_core.config.redact import shown
from dpo_core.errors import TrackingError

DEFAULT_STORE = Path("mlruns/mlflow.db")
SQLITE = "sqlite:///"
PATIENCE_S = 5.0
REFUSALS = (401, 403)
DEFAULT_PORTS = {"http": 80, "https": 443}
OLDEST = (3, 17)  # as in pyproject.toml: a client speaks to a server that is not older
SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")


def tracking_uri(track: TrackSettings) -> str:
    """The setting, else MLFLOW_TRACKING_URI, else sqlite in ./mlruns; sqlite paths are made absolute.

    Raises TrackingError for a plain directory, which MLflow no longer takes.
    """
    uri = track.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{DEFAULT_STORE}"
    if uri.startswith(SQLITE):
        return f"{SQLITE}{Path(uri.removeprefix(SQLITE)).expanduser().resolve()}"
    if re.split(r"[:+]", uri, maxsplit=1)[0] not in SCHEMES:
        raise TrackingError(
            f"tracking_uri={uri} is not a store that MLflow 3 writes to.",
            "It is the URL of a server, or a database such as sqlite:///mlruns/mlflow.db.",
            "Leave it out for the default store.",
        )
    return uri.rstrip("/")


def without_password(recipe: Recipe) -> Recipe:
    """The recipe as a flow's parameter, which Prefect writes down: an address with a password goes to
    MLFLOW_TRACKING_URI of this process instead."""
    uri = recipe.track.tracking_uri
    if not uri or shown(uri) == uri:
        return recipe
    os.environ["MLFLOW_TRACKING_URI"] = uri
    return recipe.model_copy(update={"track": recipe.track.model_copy(update={"tracking_uri": None})})


def is_server(uri: str) -> bool:
    """Whether the store is behind HTTP, where its own address opens in a browser."""
    return uri.startswith(("http://", "https://"))


def database(uri: str) -> Path | None:
    """The file of a sqlite store."""
    return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


def artifact_root(uri: str, experiment: str) -> str | None:
    """Where a new experiment of a sqlite store keeps its files: beside the database (a server decides for itself)."""
    file = database(uri)
    return str(file.parent / "artifacts" / re.sub(r"[^\w.-]+", "_", experiment)) if file else None


def check_server(uri: str) -> None:
    """Raises TrackingError, within seconds, when the server at an HTTP address does not answer as MLflow does."""
    if not is_server(uri):
        return
    try:
        with urlopen(f"{shown(uri)}/health", timeout=PATIENCE_S) as answer:
            found = f"answers with {answer.read(40)!r}" if answer.status == 200 else f"answers HTTP {answer.status}"
            healthy = found == "answers with b'OK'"
    except HTTPError as error:
        found, healthy = f"answers HTTP {error.code} to /health", False
    except (OSError, ValueError) as error:
        found, healthy = f"does not answer ({getattr(error, 'reason', error)})", False
    if not healthy:
        raise TrackingError(
            f"{shown(uri)} {found}.",
            "tracking_uri (or MLFLOW_TRACKING_URI) is the address of a running MLflow server.",
            "Start the server, mend the address, or unset it to use the store in ./mlruns.",
        )
    check_terms(uri)


def check_terms(uri: str) -> None:
    """Raises TrackingError for a server that does not take our credentials, or is older than what is needed of it.

    A server that does not tell its version is taken as it is.
    """
    try:
        with urlopen(Request(f"{shown(uri)}/version", headers=login(uri)), timeout=PATIENCE_S) as answer:
            told = answer.read(40).decode(errors="replace").strip()
    except HTTPError as error:
        if error.code in REFUSALS and not known_elsewhere():
            raise TrackingError(
                f"The MLflow server at {shown(uri)} does not take these credentials (HTTP {error.code}).",
                "It asks for MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN.",
                "Set them, or mend them.",
            ) from None
        return
    except OSError:
        return
    found = re.match(r"(\d+)\.(\d+)", told)
    if found and (int(found[1]), int(found[2])) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise TrackingError(
            f"The MLflow server at {shown(uri)} is version {told}.",
            f"Models and metrics are recorded as MLflow {oldest} has them.",
            f"Install mlflow>={oldest} there, and upgrade its database: mlflow db upgrade.",
        )


def login(uri: str) -> dict[str, str]:
    """The header that MLflow's own client would send: from the address, else from the environment."""
    parts = urlsplit(uri)
    user = unquote(parts.username or "") or os.environ.get("MLFLOW_TRACKING_USERNAME")
    password = unquote(parts.password or "") or os.environ.get("MLFLOW_TRACKING_PASSWORD")
    if user and password:
        return {"Authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token else {}


def known_elsewhere() -> bool:
    """Whether MLflow's client may have a login that :func:`login` does not see: from its file, or from a plugin."""
    plugins = any(os.environ.get(name) for name in ("MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4"))
    return plugins or (Path.home() / ".mlflow" / "credentials").exists()


def is_down(uri: str) -> bool:
    """Whether nobody listens at the address of a host that exists, as when a server is being restarted."""
    parts = urlsplit(uri)
    if not is_server(uri) or not parts.hostname:
        return False
    try:
        with socket.create_connection((parts.hostname, parts.port or DEFAULT_PORTS[parts.scheme]), PATIENCE_S):
            return False
    except socket.gaierror:
        return False
    except OSError:
        return True


def check_port(host: str, port: int) -> None:
    """Raises TrackingError when something already listens there."""
    with socket.socket() as probe:
        # As servers do: a port whose last connections are still closing is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise TrackingError(
                f"Port {port} of {host} cannot be used: {error.strerror.lower() if error.strerror else error}.",
                "The MLflow UI needs a free port.",
                f"Stop what listens there, or choose another: dpo ui --port {port + 1}.",
            ) from None


def experiment_page(server: str, experiment_id: str, view: str | None = None) -> str:
    """The runs of an experiment as charts, with the registry in the menu (MLflow 3 leaves it out otherwise).

    ``view`` is the key of a shared view that the experiment has.
    """
    page = f"{server}/#/experiments/{experiment_id}/runs?workflowType=machine_learning&compareRunsMode=CHART"
    return f"{page}&viewStateShareKey={view}" if view else page


def run_page(server: str, experiment_id: str, run_id: str) -> str:
    """One run."""
    return f"{server}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"
