"""NLTK data: where NLTK finds its sentence splitter, which some of IFEval's checkers need. Does not import NLTK."""

import os
import sys
from pathlib import Path

DATA = "tokenizers/punkt_tab"
SYSTEM = ("/usr/share", "/usr/local/share", "/usr/lib", "/usr/local/lib")


def is_installed(directory: Path | None) -> bool:
    """Whether the splitter's data are in ``directory`` or in one of NLTK's own search paths."""
    return any(
        (path / f"{DATA}{suffix}").exists() for path in search_paths(directory) for suffix in ("/english", ".zip")
    )


def search_paths(directory: Path | None) -> list[Path]:
    """The directories that NLTK searches: ``directory`` (the setting nltk_data), NLTK_DATA, and its defaults."""
    configured = [Path(name) for name in os.environ.get("NLTK_DATA", "").split(os.pathsep) if name]
    prefixed = [Path(sys.prefix) / part for part in ("nltk_data", "share/nltk_data", "lib/nltk_data")]
    return [
        *([directory.expanduser()] if directory else []),
        *configured,
        Path("~/nltk_data").expanduser(),
        *prefixed,
        *(Path(name) / "nltk_data" for name in SYSTEM),
    ]
