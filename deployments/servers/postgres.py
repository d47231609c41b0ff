"""Postgres server with a cluster in a directory: system package, loopback device, password login."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psycopg2

from deployments.servers.processes import HOST, Service
from dpo_core.errors import TrackingError

SYSTEM = Path("/usr/lib/postgresql")
USER = "dpo"


@dataclass(frozen=True)
class Access:
    """Port of the cluster, and password of its user."""

    port: int
    password: str

    def url(self, database: str, driver: str = "postgresql") -> str:
        """The SQLAlchemy URL of a database."""
        return f"{driver}://{USER}:{quote(self.password, safe='')}@{HOST}:{self.port}/{database}"


def binaries() -> Path | None:
    """Directory of initdb and postgres: the newest of the system package, else from PATH; None if not installed."""
    versions = [path for path in SYSTEM.glob("*/bin") if (path / "initdb").exists() and (path / "postgres").exists()]
    if versions:
        return max(versions, key=lambda path: float(path.parent.name))
    initdb = shutil.which("initdb")
    return Path(initdb).resolve().parent if initdb else None


def service(home: Path, access: Access) -> Service:
    """The server of the cluster in ``home``; the cluster is created if it does not exist.

    Raises TrackingError when Postgres is not installed or the cluster cannot be created.
    """
    binaries_path = binaries()
    if binaries_path is None:
        raise TrackingError(
            "Postgres is not installed.",
            "Prefect's and MLflow's servers keep their tables in Postgres.",
            "Install it (apt install postgresql), or run without servers: dpo run needs none.",
        )
    user = unprivileged()
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "PG_VERSION").exists():
        create(home, access.password, binaries_path, user)
    # No socket file: its path may be longer than the system allows.
    options = ["-D", str(home), "-h", HOST, "-p", str(access.port), "-c", "unix_socket_directories="]
    return Service(
        name="Postgres",
        command=[str(binaries_path / "postgres"), *options],
        environment=os.environ | {"LC_ALL": "C"},
        log=home.parent / "postgres.log",
        ready=lambda: responds(access),
        user=user,
        stop_signal=signal.SIGINT,  # Postgres's fast shutdown
    )


def unprivileged() -> str | None:
    """The user that Postgres runs as when this process is root, which Postgres refuses; else None."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def create(home: Path, password: str, binaries_path: Path, user: str | None) -> None:
    """Create the cluster. Raises TrackingError when initdb fails."""
    with tempfile.NamedTemporaryFile("w", suffix=".password") as secret:
        secret.write(password + "\n")
        secret.flush()
        if user:
            owner = pwd.getpwnam(user)
            for path in (home, secret.name):
                os.chown(path, owner.pw_uid, owner.pw_gid)
        options = ["-U", USER, f"--pwfile={secret.name}", "-A", "scram-sha-256", "-E", "UTF8", "--locale=C"]
        result = subprocess.run(
            [str(binaries_path / "initdb"), "-D", str(home), *options],
            capture_output=True,
            text=True,
            cwd="/",
            user=user,
            group=user,
        )
    if result.returncode:
        raise TrackingError(
            f"Postgres cannot create its cluster in {home}: {(result.stderr.strip().splitlines() or ['?'])[-1]}.",
            f"{f'The user {user}' if user else 'The current user'} must own the directory and have access to it.",
            "Choose another directory for the servers: --home.",
        )


def responds(access: Access) -> bool:
    """Whether the server accepts connections."""
    try:
        psycopg2.connect(access.url("postgres"), connect_timeout=2).close()
    except psycopg2.OperationalError:
        return False
    return True


def ensure_databases(access: Access, *names: str) -> None:
    """Create the databases that do not exist."""
    connection = psycopg2.connect(access.url("postgres"))
    connection.autocommit = True  # databases are not created inside a transaction
    try:
        with connection.cursor() as cursor:
            cursor.execute("select datname from pg_database")
            existing = {name for (name,) in cursor.fetchall()}
            for name in names:
                if name not in existing:
                    cursor.execute(f'create database "{name}"')
    finally:
        connection.close()
