"""Errors in three parts: what was found, the rule it breaks, what to do about it."""

import json


class DPOError(Exception):
    """An error meant for the user: one line, no traceback unless asked for.

    found: what is there, with names and numbers.
    rule: what must hold.
    remedy: what to type or change.
    """

    exit_code = 1

    def __init__(self, found: str, rule: str, remedy: str) -> None:
        super().__init__(found, rule, remedy)
        self.found, self.rule, self.remedy = found, rule, remedy

    def __str__(self) -> str:
        return " ".join(part for part in (self.found, self.rule, self.remedy) if part)

    def to_json(self) -> str:
        """The error as one JSON object, so that it can cross a process boundary."""
        return json.dumps({"kind": type(self).__name__, "parts": [self.found, self.rule, self.remedy]})


class RecipeError(DPOError):
    """The recipe asks for something that cannot be; yours to mend."""

    exit_code = 2


class DataError(DPOError):
    """The dataset does not hold what the recipe says it does."""

    exit_code = 3


class TrainingError(DPOError):
    """The run itself failed."""

    exit_code = 4


class DiedError(DPOError):
    """A stage's process was killed, perhaps for its memory: what it saved stands, and trying again may help."""

    exit_code = 4


class OutOfMemoryError(DPOError):
    """Memory ran out with settings that would run out of it again: what was saved stands.

    ``smaller_budget_helps``: it ran out in a microbatch that a smaller token_budget would make smaller.
    """

    exit_code = 4
    smaller_budget_helps = False


class DiskFullError(DPOError):
    """A disk or a quota is used up: what was whole stands."""

    exit_code = 4


class EvaluationError(DPOError):
    """The evaluation could not be done or cannot be believed."""

    exit_code = 5


class TrackingError(DPOError):
    """The tracking server, the registry or the orchestrator does not answer as it must."""

    exit_code = 6


class StoppedError(DPOError):
    """The run was asked to stop, and did so at a checkpoint: not a failure."""

    exit_code = 75


def interrupted() -> StoppedError:
    """Ctrl-C where no step had to be finished first."""
    return StoppedError("Stopped.", "What is done is kept.", "Run the same command again to continue.")


KINDS: dict[str, type[DPOError]] = {
    kind.__name__: kind
    for kind in (
        DPOError,
        RecipeError,
        DataError,
        TrainingError,
        DiedError,
        OutOfMemoryError,
        DiskFullError,
        EvaluationError,
        TrackingError,
        StoppedError,
    )
}


# Error classes of Python, torch and this package for memory that ran out, and words of errors without such a class.
MEMORY_KINDS = {"MemoryError", "OutOfMemoryError", "MemoryShort"}
MEMORY_WORDS = ("allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of any library says that memory of the host or a GPU ran out; false for a DPOError.

    Imports no torch.
    """
    if isinstance(error, DPOError):
        return False
    named = any(kind.__name__ in MEMORY_KINDS for kind in type(error).__mro__)
    return named or (isinstance(error, RuntimeError | OSError) and any(words in str(error) for words in MEMORY_WORDS))


def from_json(text: str) -> DPOError:
    """The inverse of :meth:`DPOError.to_json`."""
    fields = json.loads(text)
    return KINDS[fields["kind"]](*fields["parts"])
