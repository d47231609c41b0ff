"""What each stage's process is asked to do: sections of the recipe and records of earlier stages, as one JSON file."""

from pathlib import Path

from dpo_core.recipe import (
    DataSettings,
    EngineName,
    EvaluateSettings,
    ModelSettings,
    RenderSettings,
    TrainSettings,
    WarmStartSettings,
)
from dpo_core.records import ModelSource, PairSet, PromptSet, Record, ReferenceSet, RenderedSet, TaskResult


class AcquireRequest(Record):
    """Read, check and split the preferences. ``source`` is where they are: ``hub id@commit`` or a file's path."""

    data: DataSettings
    source: str
    seed: int


class PromptsRequest(Record):
    """Bring the instruction-following prompts. ``source`` is demo, a file's path, a directory that ``datasets`` saved,
    or a pinned hub id."""

    source: str
    demo_pairs: int
    seed: int
    limit: int | None
    nltk_data: Path | None = None


class RenderRequest(Record):
    """Tokenise the pairs with the model's tokenizer."""

    pairs: PairSet
    model: ModelSource
    render: RenderSettings


class MergeRequest(Record):
    """Add the adapters in a directory into the weights they were trained on; the sum is called ``name``."""

    base: ModelSource
    adapter: Path
    name: str


class WarmStartRequest(Record):
    """Fine-tune the model on completions, before any preference."""

    rendered: RenderedSet
    model: ModelSource
    warm_start: WarmStartSettings
    train: TrainSettings


class ScoreRequest(Record):
    """Score completions under the reference: the test split and, if asked, the training pairs that the run will see.

    ``frozen_dtype``: type of weights that do not train. ``base_key``: outputs that have it too lend their pairs (empty:
    none does).
    """

    rendered: RenderedSet
    model: ModelSource
    train: TrainSettings
    score_train: bool = True
    frozen_dtype: str = "float32"
    base_key: str = ""


class TrainRequest(Record):
    """Optimise the policy. ``fingerprint`` is the run's own, ``lineage`` that of everything but its length; both are
    kept in ``log_path/config.json`` with ``recipe``.

    ``on_the_fly``: the reference is asked in every step. ``frozen_dtype``: type of weights that do not train, and of
    those that are measured at the end. ``export_dtype``: type of the final model's.
    ``prompts``: of which the first ``watched`` are asked at each infrequent evaluation (None: none).
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
    log_path: Path
    fingerprint: str
    lineage: str
    recipe: dict[str, object]


class LookRequest(Record):
    """Build tasks, to see what they are made of; and see whether the ``judge`` can be asked."""

    tasks: tuple[str, ...]
    judge: str | None = None


class ImportsRequest(Record):
    """Import what generating with this engine needs."""

    engine: EngineName


class AnswerRequest(Record):
    """Ask one model one task: its prompts where the task is ours, else at most ``evaluate.task_limit`` samples."""

    model: ModelSource
    renderer_name: str
    task: str
    prompts: PromptSet | None
    evaluate: EvaluateSettings
    precision: str


class KeyedAnswers(Record):
    """Answers to one task: the key that they are kept under, and how they are got."""

    key: str
    request: AnswerRequest


class GenerateRequest(Record):
    """Let one model give the ``answers`` that are not kept yet.

    ``continues``: it continues the first ``evaluate.num_samples`` held-out prompts too.
    """

    model: ModelSource
    rendered: RenderedSet
    answers: tuple[KeyedAnswers, ...]
    continues: bool
    evaluate: EvaluateSettings
    precision: str


class EvaluateRequest(Record):
    """Measure one model on held-out pairs, its weights in ``dtype``, and bring together its ``answers`` to tasks.

    ``samples``: the key of a SampleSet that was made elsewhere, None where it is made here.
    """

    model: ModelSource
    rendered: RenderedSet
    reference: ReferenceSet
    answers: tuple[KeyedAnswers, ...]
    evaluate: EvaluateSettings
    train: TrainSettings
    dtype: str = "float32"
    samples: str | None = None


class JudgeRequest(Record):
    """Let ``judge``, a model of inspect-ai's, prefer one of two models' answers to each prompt of a task."""

    judge: str
    first: TaskResult
    second: TaskResult
