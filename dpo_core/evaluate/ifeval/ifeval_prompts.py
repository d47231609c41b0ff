"""The stage that brings the instruction-following prompts, and makes sure before training that they can be scored."""

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
from dpo_core.evaluate.ifeval.ifeval_checkers import ROW, IFEvalPrompt, registry, score, sentences_from
from dpo_core.records import PromptSet
from dpo_core.stages.evaluation.prompts import PromptsRequest
from dpo_core.system.progress import Progress

HUB_ID, HUB_FILE = "google/IFEval", "ifeval_input_data.jsonl"
HUB_REVISION = "966cd89545d6b6acfd7638bc708b98261ca58e84"
INSTEAD = "ifeval_path=<local JSONL file> (or tasks=none)"
FILE = "prompts.jsonl"

RULE = 'A line is {"key": int, "prompt": str, "instruction_id_list": [str], "kwargs": [object]}.'
PROBE = "Any text will do."


def run(request: PromptsRequest, draft: Draft) -> None:
    """Fetch, check and write the prompts in IFEval's official schema; publish a PromptSet.

    Raises DataError for a broken or repeated line or a hub out of reach, EvaluationError when a checker's data are
    missing.
    """
    sentences_from(request.nltk_data)
    found = Progress("checking the prompts", request.limit, "prompts").track(fetch(request))
    rows = checked(islice(found, request.limit), request.nltk_data)
    file = draft.path / FILE
    file.write_bytes(b"".join(ROW.dump_json(row) + b"\n" for row in rows))
    digest = fingerprint.of_files([file], draft.path)
    draft.publish(PromptSet(path=draft.final / FILE, fingerprint=digest, source=request.source, prompts=len(rows)))


def fetch(request: PromptsRequest) -> Iterator[tuple[str, IFEvalPrompt]]:
    """The rows of the source, each with its place in it."""
    if request.source == "demo":
        prompts = demo_pairs.generate(request.demo_pairs, request.seed).prompts
        return ((f"demo prompt {index}", ROW.validate_python(row)) for index, row in enumerate(prompts))
    if Path(request.source).is_dir():
        return read_saved(Path(request.source))
    name, at, revision = request.source.partition("@")
    return read(download(name, revision) if at and not Path(request.source).exists() else Path(request.source))


def kept_by_inspect() -> Path | None:
    """The directory in which inspect-ai's ``hf_dataset`` keeps the prompts, once a task of its has read them here."""
    # Lazy: inspect-ai costs 2 s, for whoever has neither the hub nor its cache.
    from inspect_ai._util.appdirs import inspect_cache_dir

    kept = sorted(inspect_cache_dir("hf_datasets", create=False).glob(f"{HUB_ID.replace('/', '_')}-*"))
    return kept[-1] if kept else None


def read_saved(path: Path) -> Iterator[tuple[str, IFEvalPrompt]]:
    """The prompts of a directory that ``datasets`` saved, each with its place.

    Raises DataError for a directory that it did not, and for a row that is not a prompt.
    """
    from datasets import load_from_disk  # lazy: 1 s that a file of prompts need not pay

    try:
        rows = load_from_disk(str(path))
    except (OSError, ValueError) as error:
        found = f"{path} holds no saved dataset: {str(error).splitlines()[0]}."
        raise DataError(found, "Prompts are a JSONL file, or what datasets saved.", "Check the path.") from None
    for number, row in enumerate(rows, start=1):
        yield f"row {number}", parse(json.dumps(row).encode(), f"{path}, row {number}")


def download(name: str, revision: str) -> Path:
    """The hub's file at one commit, from the local cache when the hub cannot be reached.

    Raises DataError, after one short attempt, when neither has it.
    """
    commit = resolve_commit(HubRepository("dataset", name, revision, INSTEAD))
    # Lazy: the hub's client costs half a second that local prompts need not pay.
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(name, HUB_FILE, repo_type="dataset", revision=commit))


def read(path: Path) -> Iterator[tuple[str, IFEvalPrompt]]:
    """The prompts of a JSONL file, each with its place; blank lines are passed over.

    Raises DataError for a missing file and for a line that is not a prompt.
    """
    if not path.is_file():
        raise DataError(f"There is no file of prompts {path}.", "ifeval_path names a JSONL file.", "Check the path.")
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield f"{path.name}, line {number}", parse(line, f"{path}, line {number}")


def parse(line: bytes, where: str) -> IFEvalPrompt:
    """One line as a row.

    Raises DataError saying what is wrong with it.
    """
    try:
        return ROW.validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{where}: {field + ': ' if field else ''}{first['msg']}.", RULE, "Mend that line.") from None


def checked(rows: Iterator[tuple[str, IFEvalPrompt]], nltk_data: Path | None = None) -> list[IFEvalPrompt]:
    """The rows, each known to be scorable and to have a key of its own.

    Raises DataError, or EvaluationError when a checker's data are missing.
    """
    places: dict[int, str] = {}
    kept = []
    for where, row in rows:
        if row.key in places:
            raise DataError(f"{where} has the key {row.key} of {places[row.key]}.", "Keys are unique.", "Renumber one.")
        places[row.key] = where
        check(row, where, nltk_data)
        kept.append(row)
    if not kept:
        raise DataError("There are no prompts.", "IFEval needs at least one.", "Check ifeval_path, or set tasks=none.")
    return kept


def check(row: IFEvalPrompt, where: str, nltk_data: Path | None = None) -> None:
    """Raises unless the official checkers know every instruction, take its arguments and have the data they need."""
    if len(row.kwargs) != len(row.instruction_id_list):
        found = f"{where} has {len(row.instruction_id_list)} instructions and arguments for {len(row.kwargs)}."
        raise DataError(found, "kwargs has one object an instruction.", "Mend that line.")
    for name in row.instruction_id_list:
        if name not in registry():
            remedy = did_you_mean(name, registry(), "Mend that line.", cutoff=0.4)
            raise DataError(f"{where} has an unknown instruction {name!r}.", "It must be one of IFEval's.", remedy)
    try:
        # The checkers open what they need when they are first asked: better now than after the training.
        score(row, PROBE)
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{where} has arguments that its checker refuses: {error}.", RULE, "Mend that line.") from None
    except (LookupError, OSError) as error:
        raise missing_data(where, error, nltk_data) from None


def missing_data(where: str, error: Exception, nltk_data: Path | None) -> EvaluationError:
    """The error for a checker that cannot split sentences."""
    places = {"nltk_data": nltk_data, "NLTK_DATA": os.environ.get("NLTK_DATA")}
    told = [f"{name}={place}" for name, place in places.items() if place]
    reason = f"not in {' or '.join(told)}" if told else "not installed"
    refusal = f" ({error})" if isinstance(error, OSError) else ""
    return EvaluationError(
        f"{where} needs NLTK's sentence splitter punkt_tab, which is {reason}{refusal}.",
        "Its checker counts sentences or words with it.",
        "Run python -m nltk.downloader punkt_tab, or set nltk_data=<directory> or NLTK_DATA to one with"
        " tokenizers/punkt_tab/english (a copy: NLTK follows no links out of it).",
    )
