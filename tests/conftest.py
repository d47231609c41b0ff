"""Shared fixtures: data and models beside the repository, JSONL files, preference rows."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Property tests see the same cases on every run; --hypothesis-profile=random draws new ones (make test does).
settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=60)
settings.register_profile("random", deadline=None, max_examples=200, print_blob=True)
settings.load_profile("fixed")

# Tiny models are faster on one thread than on several that wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"


def shared(*parts: str) -> Path:
    """A path in ../shared; the test skips where it is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs ../shared/{'/'.join(parts)}")
    return path


@pytest.fixture(scope="session")
def stories() -> Path:
    """A real trained Llama of 260 thousand parameters."""
    return shared("models", "stories260K")


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[[list[Any], str], Path]:
    """Writes rows as a JSONL file."""

    def write(rows: list[Any], name: str = "pairs.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


def pair_rows(count: int) -> list[dict[str, str]]:
    """Preference rows that a tiny model can learn: the chosen side is polite, the rejected one is not."""
    return [
        {
            "prompt": f"Tell me about story {index}.",
            "chosen": "Once upon a time. Thank you!",
            "rejected": f"No, go away {index}.",
        }
        for index in range(count)
    ]
