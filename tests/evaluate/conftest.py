"""Real parts beside the repository, and small files of prompts."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import shared


@pytest.fixture(scope="session")
def ifeval_data() -> Path:
    """The official prompts, GPT-4's responses and the official verdicts on them."""
    return shared("data", "ifeval")


@pytest.fixture(scope="session")
def punkt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for NLTK_DATA with the English sentence splitter."""
    home = tmp_path_factory.mktemp("nltk_data")
    shutil.copytree(shared("data", "nltk-punkt", "english"), home / "tokenizers" / "punkt_tab" / "english")
    return home


PromptFile = Callable[[dict[str, dict[str, Any]]], Path]


@pytest.fixture
def prompt_file(tmp_path: Path) -> PromptFile:
    """Writes a JSONL file in IFEval's schema from texts with their instructions and arguments; keys count from 1000."""

    def write(prompts: dict[str, dict[str, Any]]) -> Path:
        path = tmp_path / "prompts.jsonl"
        rows = [
            {"key": 1000 + index, "prompt": text, "instruction_id_list": [*asked], "kwargs": [*asked.values()]}
            for index, (text, asked) in enumerate(prompts.items())
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write
