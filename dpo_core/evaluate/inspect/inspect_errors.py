"""Error conversion for inspect-ai: its command line prints prerequisite errors without a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager

from inspect_ai._util.error import PrerequisiteError

from dpo_core.errors import DPOError


class InspectPrerequisiteError(PrerequisiteError):
    """A DPOError, ``cause``, as an error that inspect-ai's command line prints without a traceback."""

    def __init__(self, cause: DPOError) -> None:
        super().__init__(str(cause))
        self.cause = cause


@contextmanager
def wrap_errors() -> Iterator[None]:
    """Raises InspectPrerequisiteError for a DPOError raised inside."""
    try:
        yield
    except DPOError as error:
        raise InspectPrerequisiteError(error) from error


@contextmanager
def unwrap_errors() -> Iterator[None]:
    """Raises the DPOError of an InspectPrerequisiteError raised inside."""
    try:
        yield
    except InspectPrerequisiteError as error:
        raise error.cause from error
