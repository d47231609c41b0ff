"""Where NLTK's sentence splitter is, which some of IFEval's checkers need. Imports nothing large."""

import os
import sys
from pathlib import Path

DATA = "tokenizers/punkt_tab"
SYSTEM = ("/usr/share", "/usr/local/share", "/usr/lib", "/usr/local/lib")


def found(place: Path | None) -> bool:
    """Whether the splitter's data are in ``place``, or where NLTK looks for them by itself."""
    return any((one / f"{DATA}{form}").exists() for one in places(place) for form in ("/english", ".zip"))


def places(place: Path | None) -> list[Path]:
    """The directories in which NLTK looks, the one of the settings first."""
    told = [Path(one) for one in os.environ.get("NLTK_DATA", "").split(os.pathsep) if one]
    own = [Path(sys.prefix) / part for part in ("nltk_data", "share/nltk_data", "lib/nltk_data")]
    return [
        *([place.expanduser()] if place else []),
        *told,
        Path("~/nltk_data").expanduser(),
        *own,
        *(Path(one) / "nltk_data" for one in SYSTEM),
    ]
