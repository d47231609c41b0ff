"""Postgres, an MLflow server, a Prefect server and a worker on this computer: ``python -m deployments.servers``.

All of it listens on the loopback device, asks for passwords, keeps its state in one directory, and ends with Ctrl-C.
"""

import base64
import os
import secrets
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import click

from deployments.servers import postgres
from deployments.servers.processes import HOST, Service, free_port
from dpo_core.errors import DPOError
from flows import QUIET

# One worker process and no job runners in MLflow: half a gigabyte in place of three.
SMALL_MLFLOW = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
# Slots of a concurrency limit survive a restart of the server, and are freed when their holder is gone.
LEASE_STORAGE = "prefect.server.concurrency.lease_storage.filesystem"
# Seconds between heartbeats of a run; after three missing ones another worker gets the run (automations.py).
HEARTBEAT = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
ENV_FILE = "env"
AUTH_INI = """[mlflow]
default_permission = READ
database_uri = {database}
admin_username = {user}
auth_cache_ttl_seconds = 60
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


@dataclass(frozen=True)
class Secrets:
    """Passwords and keys of the servers: from the environment, else from the last start, else generated."""

    postgres: str
    prefect: str
    mlflow: str
    mlflow_user: str
    mlflow_cookies: str


@dataclass(frozen=True)
class Ports:
    """Preferred ports of the servers. 0, or a port that is taken, means any free port."""

    prefect: int = 4200
    mlflow: int = 5000
    postgres: int = 0


@dataclass(frozen=True)
class Servers:
    """The running services, and the environment with which clients reach them."""

    home: Path
    postgres: Service
    prefect: Service
    mlflow: Service
    environment: Mapping[str, str]

    @property
    def prefect_api(self) -> str:
        """The address of Prefect's API."""
        return self.environment["PREFECT_API_URL"]

    def worker(self, name: str, pool: str = "local", limit: int = 1) -> Service:
        """A worker, not started yet. It runs at most ``limit`` flows at a time, in the directory ``DPO_HOME``."""
        arguments = ["worker", "start", "--pool", pool, "--type", "process", "--name", name, "--limit", str(limit)]
        log = self.home / f"{name}.log"
        offset = log.stat().st_size if log.exists() else 0
        return Service(
            name=f"The worker {name}",
            command=[sys.executable, "-m", "prefect", *arguments],
            environment=os.environ | HEARTBEAT | dict(self.environment),
            log=log,
            ready=lambda: b"started!" in log.read_bytes()[offset:],
        )


@contextmanager
def running(home: Path, ports: Ports | None = None, dpo_home: Path | None = None) -> Iterator[Servers]:
    """Start Postgres and both servers; stop them at the end of the block.

    ``home`` keeps databases, artifacts, logs and secrets; ``dpo_home`` (default: here) is where workers run flows.
    Raises TrackingError when one of them is not installed or does not start.
    """
    preferred = ports or Ports()
    home.mkdir(parents=True, exist_ok=True)
    logins = read_secrets(home)
    access = postgres.Access(free_port(preferred.postgres), logins.postgres)
    with ExitStack() as stack:
        database = postgres.service(home / "postgres", access)
        stack.callback(database.stop)
        database.start()
        postgres.ensure_databases(access, "prefect", "mlflow", "mlflow_auth")
        prefect = prefect_service(home, free_port(preferred.prefect), access, logins)
        mlflow = mlflow_service(home, free_port(preferred.mlflow), access, logins)
        for service in (mlflow, prefect):
            stack.callback(service.stop)
            service.start()
        clients = client_environment(prefect, mlflow, logins) | {"DPO_HOME": str((dpo_home or Path()).resolve())}
        write_private(home / ENV_FILE, "".join(f"{name}={shlex.quote(value)}\n" for name, value in clients.items()))
        yield Servers(home, database, prefect, mlflow, clients)


def read_secrets(home: Path) -> Secrets:
    """Secrets from the environment, else from ``home``, else generated; stored in ``home`` for the next start."""
    path = home / "secrets"
    stored = dict(line.split("=", 1) for line in path.read_text().splitlines()) if path.exists() else {}

    def secret(name: str, generated: str) -> str:
        stored[name] = os.environ.get(name) or stored.get(name) or generated
        return stored[name]

    values = Secrets(
        postgres=stored.setdefault(
            "POSTGRES_PASSWORD", os.environ.get("POSTGRES_PASSWORD") or secrets.token_urlsafe(24)
        ),
        prefect=secret("PREFECT_SERVER_API_AUTH_STRING", f"dpo:{secrets.token_urlsafe(24)}"),
        mlflow=secret("MLFLOW_AUTH_ADMIN_PASSWORD", secrets.token_urlsafe(24)),
        mlflow_user=secret("MLFLOW_AUTH_ADMIN_USERNAME", "dpo"),
        mlflow_cookies=secret("MLFLOW_FLASK_SERVER_SECRET_KEY", secrets.token_urlsafe(24)),
    )
    write_private(path, "".join(f"{name}={value}\n" for name, value in stored.items()))
    return values


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read."""
    path.touch(mode=0o600)
    path.write_text(text)


def prefect_service(home: Path, port: int, access: postgres.Access, logins: Secrets) -> Service:
    """Prefect's server with its tables in Postgres."""
    arguments = ["server", "start", "--host", HOST, "--port", str(port)]
    settings = {
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_API_DATABASE_CONNECTION_URL": access.url("prefect", "postgresql+asyncpg"),
        "PREFECT_SERVER_API_AUTH_STRING": logins.prefect,
        "PREFECT_API_AUTH_STRING": logins.prefect,  # for the server's own services, which are clients too
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": LEASE_STORAGE,
        "PREFECT_API_URL": f"http://{HOST}:{port}/api",
    }
    return Service(
        name="The Prefect server",
        command=[sys.executable, "-m", "prefect", *arguments],
        environment=os.environ | QUIET | settings,
        log=home / "prefect.log",
        ready=lambda: responds(f"http://{HOST}:{port}/api/admin/version", logins.prefect),
    )


def mlflow_service(home: Path, port: int, access: postgres.Access, logins: Secrets) -> Service:
    """MLflow's server with basic authentication, its tables in Postgres and its artifacts in ``home``."""
    ini = home / "mlflow-auth.ini"
    write_private(ini, AUTH_INI.format(database=access.url("mlflow_auth").replace("%", "%%"), user=logins.mlflow_user))
    options = ["--host", HOST, "--port", str(port), "--workers", "1", "--app-name", "basic-auth"]
    settings = {
        "MLFLOW_BACKEND_STORE_URI": access.url("mlflow"),
        "MLFLOW_AUTH_CONFIG_PATH": str(ini),
        "MLFLOW_AUTH_ADMIN_PASSWORD": logins.mlflow,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": logins.mlflow_cookies,
    }
    artifacts = ["--artifacts-destination", str((home / "artifacts").resolve())]
    url = f"http://{HOST}:{port}/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default"
    return Service(
        name="The MLflow server",
        command=[sys.executable, "-m", "mlflow", "server", *options, *artifacts],
        environment=os.environ | QUIET | SMALL_MLFLOW | settings,
        log=home / "mlflow.log",
        ready=lambda: responds(url, f"{logins.mlflow_user}:{logins.mlflow}"),
    )


def client_environment(prefect: Service, mlflow: Service, logins: Secrets) -> dict[str, str]:
    """The environment variables with which a client reaches the servers and logs in."""
    port = mlflow.command[mlflow.command.index("--port") + 1]
    return {
        "PREFECT_API_URL": prefect.environment["PREFECT_API_URL"],
        "PREFECT_API_AUTH_STRING": logins.prefect,
        "MLFLOW_TRACKING_URI": f"http://{HOST}:{port}",
        "MLFLOW_TRACKING_USERNAME": logins.mlflow_user,
        "MLFLOW_TRACKING_PASSWORD": logins.mlflow,
    }


def responds(url: str, credentials: str) -> bool:
    """Whether a server answers a request with these credentials (``user:password``) with HTTP 200."""
    token = base64.b64encode(credentials.encode()).decode()
    try:
        with urlopen(Request(url, headers={"Authorization": f"Basic {token}"}), timeout=5) as response:
            return bool(response.status == 200)
    except (OSError, HTTPError):
        return False


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--home", default="servers", type=click.Path(path_type=Path), help="Databases, artifacts, logs, secrets.")
@click.option("--prefect-port", default=4200, help="Prefect's port; a free one if it is taken.")
@click.option("--mlflow-port", default=5000, help="MLflow's port; a free one if it is taken.")
@click.option("--workers", default=1, help="Number of workers; each runs one flow at a time.")
@click.option("--pool", default="local", help="Work pool of the workers, created if it does not exist.")
def main(home: Path, prefect_port: int, mlflow_port: int, workers: int, pool: str) -> None:
    """Run Postgres, an MLflow server, a Prefect server and workers here, until Ctrl-C.

    The servers listen on the loopback device. Their passwords are in HOME/env; load it with: set -a; . HOME/env.
    """
    # SIGTERM from a supervisor stops everything as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with running(home.resolve(), Ports(prefect_port, mlflow_port)) as servers, ExitStack() as stack:
            for number in range(1, workers + 1):
                worker = servers.worker(f"worker-{number}", pool)
                stack.callback(worker.stop)
                worker.start()
            click.echo(instructions(servers, workers, pool))
            watch([servers.postgres, servers.prefect, servers.mlflow])
    except KeyboardInterrupt:
        click.echo("Stopped.")
    except DPOError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


def instructions(servers: Servers, workers: int, pool: str) -> str:
    """The lines to print when the servers are ready."""
    environment = servers.environment
    ui = environment["PREFECT_API_URL"].removesuffix("/api")
    return (
        f"Prefect is at {ui}, MLflow at {environment['MLFLOW_TRACKING_URI']}; {workers} worker(s) in the pool {pool}.\n"
        f"In another terminal:  set -a; . {shlex.quote(str(servers.home / ENV_FILE))}; set +a; dpo deploy\n"
        "Ctrl-C stops the servers and workers."
    )


def watch(services: list[Service]) -> None:
    """Wait forever.

    Raises TrackingError when a service ends by itself.
    """
    while True:
        for service in services:
            if not service.alive():
                raise service.failure()
        time.sleep(1)


if __name__ == "__main__":
    main()
