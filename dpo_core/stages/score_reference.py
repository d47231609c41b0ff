"""Stage ``score_reference``: the reference's log-probabilities of the completions."""

from dpo_core.config.recipe import TrainSettings
from dpo_core.records import ModelSource, Record, ReferenceSet, RenderedSet
from dpo_core.stages.stage import Stage, StageCall


class ScoreRequest(Record):
    """Score completions under the reference: the test split and, if asked, the training pairs that the run will see.

    ``frozen_dtype``: type of weights that do not train. ``base_key``: fingerprint of all that the values depend on;
    pairs are copied from outputs with the same one (empty: from none).
    """

    rendered: RenderedSet
    model: ModelSource
    train: TrainSettings
    score_train: bool = True
    frozen_dtype: str = "float32"
    base_key: str = ""


STAGE = Stage(
    "score_reference",
    3,
    ScoreRequest,
    ReferenceSet,
    "dpo_core.train.reference",
    is_step=True,
    uses_gpu=True,
    out_of_memory_remedy="Make memory free, lower max_length",
)


def call(
    rendered: RenderedSet, reference: ModelSource, train: TrainSettings, frozen_dtype: str, needed: list[int] | None
) -> StageCall[ReferenceSet]:
    """``needed``: indices of the training pairs that the run visits, None where the reference runs in every step.

    Runs that visit other pairs share what is stored under their ``base_key``; only missing pairs are scored.
    """
    values = {
        "rendered": rendered.fingerprint,
        "model": reference.fingerprint,
        "numerics": [train.precision, train.layout, frozen_dtype],
    }
    request = ScoreRequest(
        rendered=rendered,
        model=reference,
        train=train,
        score_train=needed is not None,
        frozen_dtype=frozen_dtype,
        base_key=STAGE.cache_key(values),
    )
    return StageCall(STAGE, values | {"needed": needed}, request)
