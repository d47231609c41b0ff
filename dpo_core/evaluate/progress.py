"""A line now and then while many answers are generated."""

import sys
import time
from dataclasses import dataclass, field

EVERY_S = 15.0


@dataclass(slots=True)
class Progress:
    """How many of ``total`` answers are there, told on standard error at most every EVERY_S seconds."""

    total: int
    done: int = 0
    told: float = field(default_factory=time.monotonic)

    def one_more(self) -> None:
        """Another answer is there."""
        self.done += 1
        if time.monotonic() - self.told >= EVERY_S and self.done < self.total:
            self.told = time.monotonic()
            print(f"{self.done} of {self.total} answers", file=sys.stderr, flush=True)
