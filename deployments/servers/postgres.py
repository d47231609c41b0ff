"""A Postgres of our own from the system's package: a cluster in a directory, on the loopback device, by password."""

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
    """Where the cluster listens, and the password of its user."""

    port: int
    password: str

    def url(self, database: str, driver: str = "postgresql") -> str:
        """The address of a database, as SQLAlchemy takes it."""
        return f"{driver}://{USER}:{quote(self.password, safe='')}@{HOST}:{self.port}/{database}"


def binaries() -> Path | None:
    """The directory of initdb and postgres: the newest of the system's, else that of the PATH; None without any."""
    versions = [path for path in SYSTEM.glob("*/bin") if (path / "initdb").exists() and (path / "postgres").exists()]
    if versions:
        return max(versions, key=lambda path: float(path.parent.name))
    found = shutil.which("initdb")
    return Path(found).resolve().parent if found else None


def service(home: Path, access: Access) -> Service:
    """The server of the cluster in ``home``, which is made if it is not there.

    Raises TrackingError when Postgres is not installed or the cluster cannot be made.
    """
    place = binaries()
    if place is None:
        raise TrackingError(
            "Postgres is not installed.",
            "The servers keep their records in a Postgres of their own.",
            "Install it (apt install postgresql), or run without servers: dpo run needs none.",
        )
    user = unprivileged()
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "PG_VERSION").exists():
        create(home, access.password, place, user)
    # No socket file: a path in a deep directory would be longer than sockets may have.
    options = ["-D", str(home), "-h", HOST, "-p", str(access.port), "-c", "unix_socket_directories="]
    return Service(
        name="Postgres",
        command=[str(place / "postgres"), *options],
        environment=os.environ | {"LC_ALL": "C"},
        log=home.parent / "postgres.log",
        ready=lambda: answers(access),
        user=user,
        stop_signal=signal.SIGINT,  # its fast shutdown
    )


def unprivileged() -> str | None:
    """Whom Postgres runs as when we are root, as it refuses to be root itself."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"


def create(home: Path, password: str, place: Path, user: str | None) -> None:
    """Make the cluster."""
    with tempfile.NamedTemporaryFile("w", suffix=".password") as secret:
        secret.write(password + "\n")
        secret.flush()
        if user:
            owner = pwd.getpwnam(user)
            for path in (home, secret.name):
                os.chown(path, owner.pw_uid, owner.pw_gid)
        options = ["-U", USER, f"--pwfile={secret.name}", "-A", "scram-sha-256", "-E", "UTF8", "--locale=C"]
        made = subprocess.run(
            [str(place / "initdb"), "-D", str(home), *options],
            capture_output=True,
            text=True,
            cwd="/",
            user=user,
            group=user,
        )
    if made.returncode:
        raise TrackingError(
            f"Postgres cannot make its cluster in {home}: {(made.stderr.strip().splitlines() or ['?'])[-1]}.",
            f"The user {user or 'that you are'} must reach the directory and own it.",
            "Choose another home for the servers: --home.",
        )


def answers(access: Access) -> bool:
    """Whether the server takes connections."""
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
            there = {name for (name,) in cursor.fetchall()}
            for name in names:
                if name not in there:
                    cursor.execute(f'create database "{name}"')
    finally:
        connection.close()
