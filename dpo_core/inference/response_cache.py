"""What a model has said so far, on disk: an evaluation that is cut off goes on from the answers that it has."""

import json
from pathlib import Path

from dpo_core.inference.decoding import DecodedTokens
from dpo_core.inference.sampling import TokenLogps


class ResponseCache:
    """Completions by key, a JSON line each, written as they are finished; without a path nothing is kept."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.known: dict[str, DecodedTokens] = {}
        if path is not None and path.is_file():
            whole = path.read_bytes().rpartition(b"\n")[0]  # the last line may have been cut off
            self.known = dict(parse(line) for line in whole.splitlines())
            path.write_bytes(whole + b"\n" if whole else b"")

    def get(self, key: str) -> DecodedTokens | None:
        """What was said, if it was."""
        return self.known.get(key)

    def add(self, key: str, completion: DecodedTokens) -> None:
        """Keep what was said."""
        if self.path is not None:
            scores = [[score.logp, score.top] for score in completion.scores]
            line = json.dumps([key, completion.ids, completion.ended, scores])
            with self.path.open("a") as stream:
                stream.write(line + "\n")


def parse(line: bytes) -> tuple[str, DecodedTokens]:
    """A line as it was written."""
    key, ids, ended, scores = json.loads(line)
    told = tuple(TokenLogps(logp, tuple((token, value) for token, value in top)) for logp, top in scores)
    return key, DecodedTokens(tuple(ids), ended, told)
