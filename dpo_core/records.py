"""What the stages hand each other: small frozen records of a path, a fingerprint and counts."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

MARGIN_NOISE = "export/margin_noise"


class Record(BaseModel):
    """A frozen, strict, JSON-serialisable fact."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Lengths(Record):
    """How long one part of the pairs is: ``quantiles`` by percent, ``histogram`` in doubling bins.

    Bin 0 of the histogram counts what is empty, bin i what is 2^(i-1) to 2^i - 1 long.
    """

    mean: float
    quantiles: dict[str, int]
    histogram: tuple[int, ...]


class DataReport(Record):
    """What became of the rows of one split.

    ``dropped`` counts rows by cause, ``examples`` says which row was the first of a cause. ``lengths`` of prompt,
    chosen and rejected are in ``unit``: characters before rendering, tokens after it. ``longer_chosen`` is the share
    of pairs whose longer side is the chosen one, among those whose sides differ in length. ``truncated`` counts the
    kept pairs that are cut for their length, ``cuts`` what of them (one pair may lose several parts). ``uncut``: tokens
    of the longer side with its prompt before that, of every pair that was rendered, those dropped for length included.
    """

    rows_read: int
    kept: int
    dropped: dict[str, int] = {}
    examples: dict[str, str] = {}
    truncated: int = 0
    cuts: dict[str, int] = {}
    uncut: Lengths | None = None
    unit: str = "characters"
    lengths: dict[str, Lengths] = {}
    longer_chosen: float | None = None


class PairSet(Record):
    """Preference pairs as text: ``path`` holds ``train.arrow`` and ``test.arrow``.

    Columns of both: ``prompt`` and ``chosen``, ``rejected``: JSON lists of ``{"role", "content"}`` messages.
    ``fingerprint`` is the digest of the two files, ``source`` says where they came from (hub id and commit, or file).
    ``report.json`` and ``report.txt`` beside them hold the two reports.
    """

    path: Path
    fingerprint: str
    dataset: str
    source: str
    train_pairs: int
    test_pairs: int
    train_report: DataReport
    test_report: DataReport


class PromptSet(Record):
    """Instruction-following prompts in IFEval's schema: ``path`` is a JSONL file of
    ``{"key": int, "prompt": str, "instruction_id_list": [str], "kwargs": [dict]}``."""

    path: Path
    fingerprint: str
    source: str
    prompts: int


class ModelSource(Record):
    """A model directory in transformers' format, on this disk.

    ``fingerprint`` digests weights and configuration, ``tokenizer_fingerprint`` the tokenizer's files.
    ``has_weights`` is false for an architecture that a warm start fills from nothing. ``margin_noise`` (nats): how far
    exporting moved the margins of held-out pairs, root mean square; 0 for weights that are as they came.
    """

    path: Path
    name: str
    fingerprint: str
    tokenizer_fingerprint: str
    has_weights: bool
    trust_remote_code: bool = False
    margin_noise: float = 0.0


class RenderedSet(Record):
    """Token ids of every pair: ``path`` holds ``train.arrow``, ``test.arrow`` (:mod:`dpo_core.render.token_dataset`).

    ``test_sources.json`` beside them names the test pairs' sources, where they have any. ``tokens`` counts the train
    split's tokens of both full sequences, the prompt once in each.
    ``tokenizer_path`` is the directory whose tokenizer made the ids.
    """

    path: Path
    fingerprint: str
    renderer_name: str
    tokenizer_path: Path
    train_pairs: int
    test_pairs: int
    tokens: int
    truncated: int
    train_report: DataReport
    test_report: DataReport


class ReferenceSet(Record):
    """Per-token float32 log-probabilities of the completions under the reference, ``model``.

    ``train_pairs`` is 0 when the reference is asked during training instead. ``copied_pairs``, of both splits, were
    scored by earlier runs. ``base_key``: fingerprint of all that the values depend on, that is of everything but the
    choice of pairs. ``layouts``: tree or padded, by what the answer holds for
    (:mod:`dpo_core.train.batching.batch_layout`).
    """

    path: Path
    fingerprint: str
    model: ModelSource
    train_pairs: int
    test_pairs: int
    copied_pairs: int = 0
    base_key: str = ""
    layouts: dict[str, Literal["tree", "padded"]] = {}


class StepMetrics(Record):
    """One line of the journal: the metrics of one optimizer step.

    ``step`` counts the optimizer steps done (0 for the evaluation before the first); ``time`` is in Unix seconds.
    """

    step: int
    time: float
    values: dict[str, float]


class Checkpoint(Record):
    """Trained weights. ``path`` is a transformers directory with tokenizer; ``fingerprint`` digests the weights.

    ``export``: what exporting changed, in the metrics of :mod:`dpo_core.train.export_noise`.
    """

    path: Path
    fingerprint: str
    name: str
    step: int
    log_path: Path
    renderer_name: str
    export: dict[str, float] = {}

    @property
    def margin_noise(self) -> float:
        """How far exporting moved the margins of held-out pairs, root mean square in nats."""
        return self.export.get(MARGIN_NOISE, 0.0)


class EvalResult(Record):
    """One model, measured. ``path`` holds ``outcomes.jsonl`` (a line a prompt), ``rewards.jsonl`` (a line a held-out
    pair), ``samples.jsonl`` and inspect's logs.

    ``metrics`` are named as in the documents (``prompt_strict_acc``, ``test/accuracy``, …). ``tasks``: the version of
    each that was run. ``settings`` say how answers were drawn, seed and all. ``failed`` samples could not be asked or
    judged, and count nowhere.
    """

    path: Path
    fingerprint: str
    model_name: str
    model_fingerprint: str
    prompts_fingerprint: str
    pairs_fingerprint: str
    tasks: dict[str, str]
    settings: dict[str, str | float | None]
    failed: int
    metrics: dict[str, float]


class TaskResult(Record):
    """One model's answers to one task, judged. ``path`` holds ``answers.jsonl`` (a line a sample), inspect's log and,
    of IFEval, ``outcomes.jsonl`` (a line a prompt). ``failed`` of the ``samples`` could not be asked or judged.
    ``settings`` say how answers were drawn, seed and all.
    """

    path: Path
    fingerprint: str
    task: str
    task_version: str
    model_name: str
    model_fingerprint: str
    settings: dict[str, str | float | None]
    samples: int
    failed: int
    metrics: dict[str, float]


class Imports(Record):
    """All that generating needs was imported, in a Python of this version."""

    path: Path
    python: str


class SampleSet(Record):
    """Held-out prompts with one model's answers: ``path`` is a JSONL file with a line a sample."""

    path: Path
    fingerprint: str
    samples: int


class TaskContents(Record):
    """What tasks of inspect-ai's are made of, by name: a digest of each one's samples and version."""

    path: Path
    digests: dict[str, str]


class Judgement(Record):
    """What a judge preferred between two models' answers to the same prompts, each pair shown in both orders.

    ``path`` holds ``verdicts.jsonl`` (a line a prompt) and inspect's log. ``win_rate`` is the first model's, a tie ½.
    ``consistent``: share of prompts judged alike in both orders.
    """

    path: Path
    fingerprint: str
    judge: str
    prompts: int
    wins: int
    ties: int
    losses: int
    win_rate: float
    low: float
    high: float
    p: float
    consistent: float


class ModelVersion(Record):
    """A version in the registry, and the run that made it."""

    name: str
    version: int
    run_id: str
    experiment_id: str
    tracking_uri: str
    model_uri: str


class Promotion(Record):
    """Whether the champion alias moved, and why, in one sentence; ``gates``: each gate's verdict and reason."""

    promoted: bool
    reason: str
    name: str
    version: int
    champion_version: int | None
    gates: dict[str, str] = {}
