"""Stage ``prompts``: IFEval's prompts, checked."""

from pathlib import Path

from dpo_core.records import PromptSet, Record
from dpo_core.stages.stage import Stage, StageCall


class PromptsRequest(Record):
    """Read and check instruction-following prompts.

    ``source``: demo, a file's path, a directory that ``datasets`` saved, or a pinned hub id.
    """

    source: str
    demo_pairs: int
    seed: int
    limit: int | None
    nltk_data: Path | None = None


STAGE = Stage("prompts", 2, PromptsRequest, PromptSet, "dpo_core.evaluate.ifeval.ifeval_prompts")


def call(request: PromptsRequest, content: str, sentence_splitter: object) -> StageCall[PromptSet]:
    """``content``: digest of the source. ``sentence_splitter``: NLTK data, which some checkers need."""
    inputs = {
        "content": content,
        "demo": [request.demo_pairs, request.seed] if request.source == "demo" else [],
        "limit": request.limit,
        # Prompts that could be scored on the machine that checked them may need data that is missing on this one.
        "sentences": sentence_splitter,
    }
    return StageCall(STAGE, inputs, request)
