"""Response cache on disk: finished completions by key, so that an interrupted evaluation continues from them."""

import json
from pathlib import Path

from dpo_core.inference.decoding import DecodedTokens
from dpo_core.inference.sampling import TokenLogps


class ResponseCache:
    """Completions by key. ``path``: a JSONL file that gets a line as each completion finishes; None keeps nothing."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.completions: dict[str, DecodedTokens] = {}
        if path is not None and path.is_file():
            complete_lines = path.read_bytes().rpartition(b"\n")[0]  # an interruption may cut the last line off
            self.completions = dict(parse_line(line) for line in complete_lines.splitlines())
            path.write_bytes(complete_lines + b"\n" if complete_lines else b"")

    def get(self, key: str) -> DecodedTokens | None:
        """The completion that the file had when it was opened, or None."""
        return self.completions.get(key)

    def add(self, key: str, completion: DecodedTokens) -> None:
        """Append a completion to the file."""
        if self.path is not None:
            scores = [[score.logp, score.top] for score in completion.scores]
            line = json.dumps([key, completion.ids, completion.ended, scores])
            with self.path.open("a") as stream:
                stream.write(line + "\n")


def parse_line(line: bytes) -> tuple[str, DecodedTokens]:
    """A line of the file as key and completion."""
    key, ids, ended, rows = json.loads(line)
    scores = tuple(TokenLogps(logp, tuple((token, value) for token, value in top)) for logp, top in rows)
    return key, DecodedTokens(tuple(ids), ended, scores)
