"""Stage ``evaluate``: one model measured on held-out pairs and evaluation tasks."""

from dpo_core.config.recipe import EvaluateSettings, TrainSettings
from dpo_core.records import EvalResult, ModelSource, Record, ReferenceSet, RenderedSet
from dpo_core.stages.evaluation.answer import KeyedAnswers, sampling_in_key
from dpo_core.stages.stage import Stage, StageCall


class EvaluateRequest(Record):
    """Measure one model on held-out pairs, its weights in ``dtype``, and collect its ``answers`` to tasks.

    ``samples``: cache key of a SampleSet that another interpreter made, None where the samples are generated here.
    """

    model: ModelSource
    rendered: RenderedSet
    reference: ReferenceSet
    answers: tuple[KeyedAnswers, ...]
    evaluate: EvaluateSettings
    train: TrainSettings
    dtype: str = "float32"
    samples: str | None = None


STAGE = Stage(
    "evaluate",
    7,
    EvaluateRequest,
    EvalResult,
    "dpo_core.evaluate.evaluate",
    is_step=True,
    uses_gpu=True,
    out_of_memory_remedy="Make memory free, set a smaller eval_batch_size or max_new_tokens",
)


def call(request: EvaluateRequest, engine: str) -> StageCall[EvalResult]:
    """``engine``: name of the engine that generates."""
    settings, train = request.evaluate, request.train
    inputs = {
        "model": request.model.fingerprint,
        "rendered": request.rendered.fingerprint,
        "reference": request.reference.fingerprint,
        "answers": [answers.key for answers in request.answers],
        "samples": [settings.num_samples, sampling_in_key(settings, engine)],
        "loss": [train.loss, train.dpo_beta, train.label_smoothing, train.simpo_gamma, train.rpo_alpha],
        "numerics": [train.precision, train.layout, request.dtype, request.model.margin_noise],
    }
    return StageCall(STAGE, inputs, request)
