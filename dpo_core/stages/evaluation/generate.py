"""Stage ``generate``: all that another interpreter (``eval_python``) generates with one model."""

from pathlib import Path

from dpo_core.config.recipe import EvaluateSettings
from dpo_core.records import ModelSource, Record, RenderedSet, SampleSet
from dpo_core.stages.evaluation.answer import KeyedAnswers, sampling_in_key
from dpo_core.stages.stage import Stage, StageCall


class GenerateRequest(Record):
    """Generate the ``answers`` that are not in the store yet.

    ``continues``: the first ``evaluate.num_samples`` held-out prompts are continued too.
    """

    model: ModelSource
    rendered: RenderedSet
    answers: tuple[KeyedAnswers, ...]
    continues: bool
    evaluate: EvaluateSettings
    precision: str


STAGE = Stage(
    "generate",
    1,
    GenerateRequest,
    SampleSet,
    "dpo_core.evaluate.generate",
    uses_gpu=True,
    out_of_memory_remedy="Make memory free, set a smaller eval_batch_size or max_new_tokens",
)


def call(request: GenerateRequest, engine: str, python: Path | None) -> StageCall[SampleSet]:
    """``engine``: name of the engine that generates."""
    inputs = {
        "model": request.model.fingerprint,
        "tokenizer": request.model.tokenizer_fingerprint,
        "rendered": request.rendered.fingerprint,
        "answers": [answers.key for answers in request.answers],
        "samples": [request.evaluate.num_samples, sampling_in_key(request.evaluate, engine)],
        "precision": request.precision,
    }
    return StageCall(STAGE, inputs, request, python)
