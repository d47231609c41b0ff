"""Prompts stage of IFEval: fetches the prompts, and checks before training that they can be scored."""

import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from pydantic import ValidationError

from dpo_core.cache import fingerprint
from dpo_core.cache.store import Draft
from dpo_core.config.spelling import did_you_mean
from dpo_core.data.demo import demo_pairs
from dpo_core.data.readers.hub import HubRepository, resolve_commit
from dpo_core.errors import DataError, EvaluationError
from dpo_core.evaluate.ifeval.ifeval_checkers import ROW, IFEvalPrompt, official_checkers, score, set_nltk_data
from dpo_core.records import PromptSet
from dpo_core.stages.evaluation.prompts import PromptsRequest
from dpo_core.system.progress import Progress

HUB_ID, HUB_FILE = "google/IFEval", "ifeval_input_data.jsonl"
HUB_REVISION = "966cd89545d6b6acfd7638bc708b98261ca58e84"
HUB_ALTERNATIVE = "ifeval_path=<local JSONL file> (or tasks=none)"
PROMPTS_FILE = "prompts.jsonl"

RULE = 'A line is {"key": int, "prompt": str, "instruction_id_list": [str], "kwargs": [object]}.'
PROBE = "Any text will do."


def run(request: PromptsRequest, draft: Draft) -> None:
    """Fetch, check and write the prompts in IFEval's official schema; publish a PromptSet.

    Raises DataError for a malformed or repeated row, or an unreachable hub, and EvaluationError when a checker's data
    are missing.
    """
    set_nltk_data(request.nltk_data)
    prompts = Progress("checking the prompts", request.limit, "prompts").track(fetch_prompts(request))
    rows = checked_prompts(islice(prompts, request.limit), request.nltk_data)
    path = draft.path / PROMPTS_FILE
    path.write_bytes(b"".join(ROW.dump_json(row) + b"\n" for row in rows))
    digest = fingerprint.of_files([path], draft.path)
    draft.publish(
        PromptSet(path=draft.final / PROMPTS_FILE, fingerprint=digest, source=request.source, prompts=len(rows))
    )


def fetch_prompts(request: PromptsRequest) -> Iterator[tuple[str, IFEvalPrompt]]:
    """The rows of the source, each with its location for error messages."""
    if request.source == "demo":
        prompts = demo_pairs.generate(request.demo_pairs, request.seed).prompts
        return ((f"demo prompt {index}", ROW.validate_python(row)) for index, row in enumerate(prompts))
    if Path(request.source).is_dir():
        return read_saved_dataset(Path(request.source))
    name, separator, revision = request.source.partition("@")
    return read_prompts(
        download_prompts(name, revision) if separator and not Path(request.source).exists() else Path(request.source)
    )


def inspect_cached_prompts() -> Path | None:
    """Directory of the prompts in the cache of inspect-ai's ``hf_dataset``; None when they are not cached."""
    # Lazy: inspect-ai costs 2 s, needed only when the hub is unreachable and its own cache is empty.
    from inspect_ai._util.appdirs import inspect_cache_dir

    directories = sorted(inspect_cache_dir("hf_datasets", create=False).glob(f"{HUB_ID.replace('/', '_')}-*"))
    return directories[-1] if directories else None


def read_saved_dataset(path: Path) -> Iterator[tuple[str, IFEvalPrompt]]:
    """The prompts of a directory saved by ``datasets``, each with its location.

    Raises DataError for any other directory, and for a row that is not a prompt.
    """
    from datasets import load_from_disk  # lazy: 1 s that a file of prompts need not pay

    try:
        rows = load_from_disk(str(path))
    except (OSError, ValueError) as error:
        found = f"{path} holds no saved dataset: {str(error).splitlines()[0]}."
        raise DataError(
            found, "Prompts are a JSONL file or a directory saved by datasets.", "Check the path."
        ) from None
    for number, row in enumerate(rows, start=1):
        yield f"row {number}", parse_prompt(json.dumps(row).encode(), f"{path}, row {number}")


def download_prompts(name: str, revision: str) -> Path:
    """Local path of the hub's file at a revision; from the cache when the hub is unreachable.

    Raises DataError, after one short attempt, when the hub is unreachable and the file is not cached.
    """
    commit = resolve_commit(HubRepository("dataset", name, revision, HUB_ALTERNATIVE))
    # Lazy: the hub's client costs half a second that local prompts need not pay.
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(name, HUB_FILE, repo_type="dataset", revision=commit))


def read_prompts(path: Path) -> Iterator[tuple[str, IFEvalPrompt]]:
    """The prompts of a JSONL file, each with its location; blank lines are skipped.

    Raises DataError for a missing file, and for a line that is not a prompt.
    """
    if not path.is_file():
        raise DataError(f"There is no file of prompts {path}.", "ifeval_path names a JSONL file.", "Check the path.")
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield f"{path.name}, line {number}", parse_prompt(line, f"{path}, line {number}")


def parse_prompt(line: bytes, location: str) -> IFEvalPrompt:
    """Parse one JSON line.

    Raises DataError for a line that is not a prompt in IFEval's schema.
    """
    try:
        return ROW.validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{location}: {field + ': ' if field else ''}{first['msg']}.", RULE, "Fix that line.") from None


def checked_prompts(rows: Iterator[tuple[str, IFEvalPrompt]], nltk_data: Path | None = None) -> list[IFEvalPrompt]:
    """The rows, after checking that each can be scored and has a unique key.

    Raises DataError for a wrong row or no rows, and EvaluationError when a checker's data are missing.
    """
    locations: dict[int, str] = {}
    prompts = []
    for location, row in rows:
        if row.key in locations:
            raise DataError(
                f"{location} repeats the key {row.key} of {locations[row.key]}.", "Keys are unique.", "Renumber one."
            )
        locations[row.key] = location
        check_prompt(row, location, nltk_data)
        prompts.append(row)
    if not prompts:
        raise DataError("There are no prompts.", "IFEval needs at least one.", "Check ifeval_path, or set tasks=none.")
    return prompts


def check_prompt(row: IFEvalPrompt, location: str, nltk_data: Path | None = None) -> None:
    """Check that the official checkers exist for every instruction, accept its arguments and have the data they need.

    Raises DataError for a wrong instruction or arguments, EvaluationError for missing data.
    """
    if len(row.kwargs) != len(row.instruction_id_list):
        found = f"{location} has {len(row.instruction_id_list)} instructions but {len(row.kwargs)} kwargs."
        raise DataError(found, "kwargs has one object per instruction.", "Fix that line.")
    for name in row.instruction_id_list:
        if name not in official_checkers():
            remedy = did_you_mean(name, official_checkers(), "Fix that line.", cutoff=0.4)
            raise DataError(
                f"{location} has an unknown instruction {name!r}.",
                "It must be one of IFEval's.",
                remedy,
            )
    try:
        # A checker loads its data at its first call: missing data must fail before training, not after it.
        score(row, PROBE)
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{location} has arguments that a checker rejects: {error}.", RULE, "Fix that line.") from None
    except (LookupError, OSError) as error:
        raise missing_data_error(location, error, nltk_data) from None


def missing_data_error(location: str, error: Exception, nltk_data: Path | None) -> EvaluationError:
    """The error for a checker whose sentence splitter is missing or unreadable."""
    directories = {"nltk_data": nltk_data, "NLTK_DATA": os.environ.get("NLTK_DATA")}
    searched = [f"{name}={directory}" for name, directory in directories.items() if directory]
    reason = f"not in {' or '.join(searched)}" if searched else "not installed"
    detail = f" ({error})" if isinstance(error, OSError) else ""
    return EvaluationError(
        f"{location} needs NLTK's sentence splitter punkt_tab, which is {reason}{detail}.",
        "Its checker counts sentences or words with it.",
        "Run python -m nltk.downloader punkt_tab, or set nltk_data=<directory> or NLTK_DATA to one with"
        " tokenizers/punkt_tab/english (a copy: NLTK follows no links that leave the directory).",
    )
