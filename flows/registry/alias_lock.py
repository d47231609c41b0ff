"""One at a time at a registered model's aliases, whoever they are and wherever they run.

MLflow's aliases cannot be set on a condition (no compare-and-set). What its registry does do atomically is refuse a
second registered model of the same name: so a model named ``dpo-lock.<name>``, which exists while somebody decides, is
the lock. It works across threads, processes and machines, on sqlite, a database and a server alike.

A holder that was killed leaves it behind. A waiter that sees the same holder for ``LEASE_S`` seconds by its own clock
renames the lock to ``dpo-lock.<name>.<holder>``, which again only one can do, and deletes that when it lets go. Before
an alias moves, the holder looks whether it still is the holder (:meth:`Lock.check`). What remains: a holder that was
stopped longer than the lease (a laptop asleep) and wakes up between that look and the two calls after it.
"""

import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from dpo_core.errors import TrackingError

PREFIX = "dpo-lock."
LEASE_S, PAUSE_S, PATIENCE_S = 60.0, 0.1, 300.0


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock that is held: under which name, and by whom."""

    client: MlflowClient
    name: str
    holder: str

    def check(self) -> None:
        """Raises TrackingError when somebody took it for abandoned meanwhile."""
        if holder(self.client, self.name) != self.holder:
            raise TrackingError(
                "The registry was locked by another while this decision was made.",
                f"A decision takes less than {LEASE_S:.0f} seconds.",
                "No alias was moved: run the same command again.",
            )


@contextmanager
def locked(client: MlflowClient, model: str) -> Iterator[Lock]:
    """Hold the lock of a registered model.

    Raises TrackingError when others hold it for more than ``PATIENCE_S`` seconds.
    """
    lock = Lock(client, PREFIX + model, f"{uuid.uuid4().hex[:12]}.{socket.gethostname()}.{os.getpid()}")
    graves = wait(lock)
    try:
        yield lock
    finally:
        if holder(client, lock.name) == lock.holder:
            client.delete_registered_model(lock.name)
        for grave in graves:
            with suppress(MlflowException):
                client.delete_registered_model(grave)


def wait(lock: Lock) -> list[str]:
    """Until the lock is ours; returns the names under which abandoned ones were put aside."""
    graves: list[str] = []
    seen, since, end = None, time.monotonic(), time.monotonic() + PATIENCE_S
    while not taken(lock):
        other = holder(lock.client, lock.name)
        if other != seen:
            seen, since = other, time.monotonic()
        elif other and time.monotonic() - since > LEASE_S and (grave := bury(lock, other)):
            graves.append(grave)
        if time.monotonic() > end:
            raise TrackingError(
                f"{other} has been holding {lock.name} in the registry.",
                "One at a time decides about a champion.",
                "Wait for it, or delete that registered model if nobody is at work.",
            )
        time.sleep(PAUSE_S)
    return graves


def taken(lock: Lock) -> bool:
    """Whether the lock came to be ours just now."""
    with suppress(MlflowException):
        lock.client.create_registered_model(lock.name, description=lock.holder)
        return True
    return holder(lock.client, lock.name) == lock.holder


def holder(client: MlflowClient, name: str) -> str | None:
    """Who holds a lock, None for nobody."""
    with suppress(MlflowException):
        return str(client.get_registered_model(name).description)
    return None


def bury(lock: Lock, abandoned: str) -> str | None:
    """Put a lock aside whose holder is gone; None when another waiter was first."""
    grave = f"{lock.name}.{abandoned}"
    with suppress(MlflowException):
        lock.client.rename_registered_model(lock.name, grave)
        return grave
    return None
