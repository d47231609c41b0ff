"""Lock on the aliases of a registered model, across threads, processes and machines.

MLflow's aliases cannot be set on a condition (there is no compare-and-set). Its registry does refuse a second
registered model of the same name atomically, on sqlite, a database and a server alike. So a registered model named
``dpo-lock.<name>``, which exists while a decision is made, is the lock.

A killed holder leaves it behind. A waiter that sees the same holder for ``LEASE_S`` seconds by its own clock renames
the lock to ``dpo-lock.<name>.<holder>``, which only one waiter can do, and deletes that model when it releases the
lock. Before an alias moves, the holder checks that it still holds the lock (:meth:`Lock.check`). One gap remains: a
holder that was suspended for longer than the lease (a laptop asleep) and resumes between that check and the alias
calls after it.
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

LOCK_PREFIX = "dpo-lock."
LEASE_S, POLL_S, MAX_WAIT_S = 60.0, 0.1, 300.0


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock: the name of its registered model, and the identity of the process that wants or holds it."""

    client: MlflowClient
    name: str
    holder: str

    def check(self) -> None:
        """Raises TrackingError when another process has broken this lock as stale."""
        holder = current_holder(self.client, self.name)
        if holder != self.holder:
            raise TrackingError(
                f"The lock {self.name} was taken over by {holder or 'another process'} while this decision was made.",
                f"A decision takes less than {LEASE_S:.0f} seconds.",
                "No alias was moved: run the same command again.",
            )


@contextmanager
def locked(client: MlflowClient, model: str) -> Iterator[Lock]:
    """Hold the lock of a registered model.

    Raises TrackingError when others hold it for more than ``MAX_WAIT_S`` seconds.
    """
    lock = Lock(client, LOCK_PREFIX + model, f"{uuid.uuid4().hex[:12]}.{socket.gethostname()}.{os.getpid()}")
    stale_names = acquire(lock)
    try:
        yield lock
    finally:
        if current_holder(client, lock.name) == lock.holder:
            client.delete_registered_model(lock.name)
        for name in stale_names:
            with suppress(MlflowException):
                client.delete_registered_model(name)


def acquire(lock: Lock) -> list[str]:
    """Wait until the lock is acquired; return the names that stale locks were renamed to."""
    stale_names: list[str] = []
    last_holder, since, deadline = None, time.monotonic(), time.monotonic() + MAX_WAIT_S
    while not try_acquire(lock):
        holder = current_holder(lock.client, lock.name)
        if holder != last_holder:
            last_holder, since = holder, time.monotonic()
        elif holder and time.monotonic() - since > LEASE_S and (name := break_stale_lock(lock, holder)):
            stale_names.append(name)
        if time.monotonic() > deadline:
            raise TrackingError(
                f"{holder} has been holding {lock.name} in the registry for {MAX_WAIT_S:g} seconds.",
                "Only one process at a time may decide about a champion.",
                "Wait for it, or delete that registered model if no process is deciding.",
            )
        time.sleep(POLL_S)
    return stale_names


def try_acquire(lock: Lock) -> bool:
    """Try once to create the lock's model; True when this process now holds the lock."""
    with suppress(MlflowException):
        lock.client.create_registered_model(lock.name, description=lock.holder)
        return True
    # A request whose response was lost may have created it.
    return current_holder(lock.client, lock.name) == lock.holder


def current_holder(client: MlflowClient, name: str) -> str | None:
    """Return the identity that holds a lock, or None."""
    with suppress(MlflowException):
        return str(client.get_registered_model(name).description)
    return None


def break_stale_lock(lock: Lock, stale_holder: str) -> str | None:
    """Rename the lock of a dead holder and return its new name; None when another waiter was faster."""
    name = f"{lock.name}.{stale_holder}"
    with suppress(MlflowException):
        lock.client.rename_registered_model(lock.name, name)
        return name
    return None
