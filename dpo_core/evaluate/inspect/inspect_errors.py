"""Our errors as inspect-ai's own commands print them: in their own words, without a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager

from inspect_ai._util.error import PrerequisiteError

from dpo_core.errors import DPOError


class Unusable(PrerequisiteError):
    """An error of ours, for inspect-ai's command line; ``cause`` is it."""

    def __init__(self, cause: DPOError) -> None:
        super().__init__(str(cause))
        self.cause = cause


@contextmanager
def told_to_inspect() -> Iterator[None]:
    """Raises Unusable for an error of ours that is raised inside."""
    try:
        yield
    except DPOError as error:
        raise Unusable(error) from error


@contextmanager
def told_to_us() -> Iterator[None]:
    """Raises our error for an Unusable that is raised inside."""
    try:
        yield
    except Unusable as error:
        raise error.cause from error
