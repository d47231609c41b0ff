"""Stage ``train``: the policy, trained with DPO."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_core.config.recipe import ModelSettings, TrainSettings
from dpo_core.records import Checkpoint, ModelSource, PromptSet, Record, ReferenceSet, RenderedSet
from dpo_core.stages.stage import Stage, StageCall, settings_in_key

# Sections, and settings of the section train, that do not change what a run computes.
SECTIONS_NOT_IN_KEY = {"track", "promote", "sweep"}
NOT_IN_KEY = {
    "log_path",
    "behavior_if_log_dir_exists",
    "show_every",
    "save_every",
    "save_every_minutes",
    "keep_checkpoints",
    "best_metric",
    "on_save_error",
    "max_minutes",
    "step_timeout_minutes",
}
# Settings of which a run can be given more when it is finished.
LENGTHS = {"num_epochs", "max_steps"}


class TrainRequest(Record):
    """Train the policy. ``fingerprint`` is the run's own, ``lineage`` that of everything but its length; both are kept
    in ``log_path/config.json`` with ``recipe``.

    ``on_the_fly``: the reference runs in every step. ``frozen_dtype``: type of weights that do not train, and of those
    that are measured at the end. ``export_dtype``: type of the final model's weights.
    ``prompts``: of which the policy answers the first ``watched`` at each infrequent evaluation (None: none).
    ``evaluator``: module of a function ``metrics_of(request)`` that gives the metrics which training itself does not
    know (None: no such metrics). Training knows no tasks, so it imports what does by this name.
    """

    rendered: RenderedSet
    reference: ReferenceSet
    model: ModelSource
    settings: ModelSettings
    train: TrainSettings
    on_the_fly: bool = False
    frozen_dtype: str = "float32"
    export_dtype: str = "float32"
    samples: int
    max_new_tokens: int
    prompts: PromptSet | None = None
    watched: int = 0
    nltk_data: Path | None = None
    evaluator: str | None = None
    log_path: Path
    fingerprint: str
    lineage: str
    recipe: dict[str, object]


STAGE = Stage(
    "train",
    3,
    TrainRequest,
    Checkpoint,
    "dpo_core.train.train",
    is_step=True,
    uses_gpu=True,
    token_budget_decides=True,
    out_of_memory_remedy="Make memory free, lower max_length, train less (lora_rank)",
)


@dataclass(frozen=True)
class RunKeys:
    """Cache-key inputs of a training run, and the fingerprints made of them."""

    inputs: dict[str, Any]
    lineage_inputs: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """Cache key of the stage."""
        return STAGE.cache_key(self.inputs)

    @property
    def lineage(self) -> str:
        """The same for a run and its extension: it leaves out the length, and which pairs the reference scored."""
        return STAGE.cache_key(self.lineage_inputs)


def keys(request_inputs: dict[str, Any], reference: ReferenceSet, train: TrainSettings) -> RunKeys:
    """``request_inputs``: what the run depends on besides its reference and its training settings."""
    settings = settings_in_key(train, *NOT_IN_KEY)
    # A longer run may need more of the reference scored: it is the same run if the reference is the same model.
    without_length = {name: value for name, value in settings.items() if name not in LENGTHS}
    return RunKeys(
        request_inputs | {"reference": reference.fingerprint, "train": settings},
        request_inputs | {"reference": reference.model.fingerprint, "train": without_length},
    )


def call(request: TrainRequest, run_keys: RunKeys) -> StageCall[Checkpoint]:
    """A training run with the keys that its request holds."""
    return StageCall(STAGE, run_keys.inputs, request)
