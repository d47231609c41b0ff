"""Recipe: the frozen tree of settings that defines a run. Every default is here and nowhere else."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Every = Annotated[int, Field(ge=0)]
EngineName = Literal["auto", "torch", "paged", "vllm"]
TrainOnWhat = Literal[
    "last_assistant_message",
    "last_assistant_turn",
    "all_assistant_messages",
    "all_messages",
    "all_tokens",
    "all_user_and_system_messages",
    "customized",
]
OverLength = Literal["cut", "drop"]


class Section(BaseModel):
    """A frozen part of the recipe; unknown keys are errors, docstrings of attributes are the help."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


class DataSettings(Section):
    """Which preferences to learn from."""

    dataset: str = "hhh"
    """a name (hhh, helpsteer3, ultrafeedback, tulu3, arena, helpsteer2, demo), a file or directory of JSONL, parquet or
    Arrow, hub:OWNER/NAME, or package.module:Class"""
    data_path: Path | None = None
    """local copy of a named dataset: a directory as on the hub or saved by datasets, or a file (None: from the hub)"""
    dataset_revision: str | None = None
    """commit, branch or tag of the hub dataset (None: its main branch, resolved to a commit)"""
    dataset_config: str | None = None
    """name of the hub dataset's configuration"""
    train_split: str = "train"
    """split of a hub: dataset or directory to train on"""
    test_split: str | None = None
    """split of a hub: dataset or directory to hold out (None: test or validation, else taken by prompt)"""
    prompt_column: tuple[str, ...] = ()
    """column with the prompt; several, comma-separated, are joined by a blank line (none: prompt)"""
    chosen_column: str | None = None
    """column with the preferred reply (None: chosen)"""
    rejected_column: str | None = None
    """column with the other reply (None: rejected)"""
    test_path: Path | None = None
    """file of held-out pairs (None: the dataset's own, else taken by prompt, see test_size)"""
    test_size: Count = 1024
    """held-out pairs at most, and no more than a tenth of a dataset without a test split (of fewer than ten, one)"""
    max_dropped_fraction: Annotated[float, Field(ge=0, le=1)] = 0.2
    """malformed rows above this share of all rows are an error"""
    demo_pairs: Annotated[int, Field(ge=64, le=20_000)] = 4000
    """training pairs that the built-in demo generates"""


class RenderSettings(Section):
    """How conversations become tokens."""

    renderer_name: str | None = None
    """how conversations become text: role_colon, llama3, qwen3, qwen3_disable_thinking, qwen3_instruct, deepseekv3,
    gpt_oss_no_sysprompt, kimi_k2, gemma, mistral, chat_template, or your own package.module:Class
    (None: stored with the model, or recommended for it, or its chat template)"""
    train_on_what: TrainOnWhat = "last_assistant_message"
    """which messages of a completion are trained: last_assistant_message, last_assistant_turn, all_assistant_messages,
    all_messages, all_tokens, all_user_and_system_messages, or customized (messages' trainable flags); the prompt is the
    same on both sides, so its tokens would cancel in the loss, and are never trained"""
    max_length: Annotated[int, Field(ge=2)] = 8192
    """tokens of prompt and completion together at most"""
    over_length: OverLength = "cut"
    """pairs over max_length: cut takes oldest turns, then the beginning of the last user's text, then responses' ends,
    never a header, and drops pairs without room for their prompt; drop drops every one"""


class ModelSettings(Section):
    """Which weights are trained, and how much of them."""

    model_name: str | None = None
    """hub id or local directory of the initial weights (demo: the built-in small Llama, from scratch)"""
    model_revision: str | None = None
    """commit, branch or tag of the hub model"""
    reference_model_name: str | None = None
    """hub id or directory of the reference (None: the initial weights)"""
    load_checkpoint_path: Path | None = None
    """start from these weights with a fresh optimizer: a directory in transformers' format (a run's final/), or LoRA
    adapters in peft's (its adapter/), which are added into their model first"""
    trust_remote_code: bool = False
    """run code that a hub repository brings along"""
    lora_rank: Annotated[int, Field(ge=0)] = 32
    """rank of the LoRA adapters on all linear layers; 0 trains every weight"""
    lora_alpha: Positive = 32
    """LoRA's scale is lora_alpha / lora_rank"""
    lora_targets: tuple[str, ...] = ("all-linear",)
    """names of the layers that get adapters, comma-separated (as q_proj,v_proj); all-linear: all but the head"""
    export_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """type of the final model's weights; auto: that of training (bfloat16 for LoRA with precision=bf16, else float32);
    float32 keeps a LoRA run's frozen weights in float32 from the start, base and trained alike"""


class WarmStartSettings(Section):
    """A light supervised phase before DPO."""

    sft_steps: Every = 0
    """optimizer steps of supervised warm start; 0 skips it"""
    sft_learning_rate: Positive = 3e-3
    """peak learning rate of the warm start, decaying linearly to zero"""
    sft_batch_size: Count = 32
    """completions a step of the warm start"""
    sft_chosen_fraction: Annotated[float, Field(ge=0, le=1)] = 1.0
    """share of warm-start completions taken from the chosen side, the rest from the rejected one"""


class TrainSettings(Section):
    """The optimisation."""

    learning_rate: Positive = 1e-5
    """peak learning rate of AdamW"""
    warmup_steps: Every = 0
    """optimizer steps over which the learning rate rises from zero to its schedule"""
    lr_schedule: Literal["linear", "cosine", "constant"] = "linear"
    """linear: 1 - step/T; cosine: (1 + cos(pi step/T)) / 2; constant"""
    dpo_beta: Positive = 0.1
    """beta of the DPO loss: how strongly the policy is kept near the reference"""
    loss: Literal["sigmoid", "robust", "ipo", "hinge", "length_normalised", "simpo"] = "sigmoid"
    """preference loss: sigmoid is DPO (with label_smoothing cDPO); the others are in dpo_core/train/loss.py"""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """share of preferences that are taken to be labelled the wrong way round"""
    simpo_gamma: Annotated[float, Field(ge=0)] = 0.5
    """target margin of loss=simpo"""
    rpo_alpha: Annotated[float, Field(ge=0)] = 0.0
    """weight of the chosen side's negative log-likelihood per token beside the preference loss"""
    reference_mode: Literal["auto", "cached", "on_the_fly"] = "auto"
    """cached: scored once and kept; on_the_fly: in every step; auto: cached, unless it is one epoch and above 4 GiB"""
    batch_size: Count = 256
    """pairs an optimizer step"""
    num_epochs: Count = 1
    """passes over the training pairs"""
    max_steps: Count | None = None
    """stop after this many optimizer steps (None: all epochs); schedules end there too"""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """AdamW's decay of the first moment"""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """AdamW's decay of the second moment"""
    adam_eps: Positive = 1e-8
    """AdamW's epsilon"""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled weight decay"""
    max_grad_norm: Positive | None = None
    """longer gradients are scaled down to this L2 norm (None: never)"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """compute type: fp32, or bf16 autocast; weights and optimizer stay float32"""
    token_budget: Count | Literal["auto"] = "auto"
    """tokens of a microbatch at most, prompts counted once; auto: what fits into memory (a CPU's 2,048 at most)"""
    layout: Literal["auto", "tree", "padded"] = "auto"
    """tree: pairs after each other without padding, prompts shared; padded: a row a side; auto: tree where it works"""
    activation_checkpointing: bool = False
    """compute activations again in the backward pass instead of keeping them: less memory, more time"""
    compile_model: bool | Literal["auto"] = "auto"
    """compile the model's layers with torch.compile; auto: on a GPU, without activation_checkpointing"""
    deterministic: bool = False
    """only kernels that give the same bits every time, on a GPU at some cost"""
    seed: int = 0
    """seed of the data order, of LoRA's initial weights, of a base from scratch and of the demo's data"""
    eval_every: Every = 10
    """steps between evaluations of the policy in memory on the held-out pairs (the last: of the exported weights, which
    LoRA under bf16 rounds); 0 = never during training"""
    infrequent_eval_every: Every = 100
    """steps between sample generations for the held-out prompts; 0 = never during training"""
    save_every: Every = 20
    """steps between checkpoints; 0 = only the final one"""
    save_every_minutes: Annotated[float, Field(ge=0)] = 0
    """minutes between checkpoints, beside save_every; 0 = steps alone decide"""
    keep_checkpoints: Every = 3
    """latest checkpoints to keep, the final one among them, beside the best by best_metric; 0 = all"""
    best_metric: str | None = None
    """metric whose best checkpoint is saved and kept, whatever save_every says: test/accuracy, -test/dpo_loss (less is
    better), or test/ifeval_prompt_strict with infrequent_prompts (None: none)"""
    on_save_error: Literal["stop", "continue"] = "stop"
    """what a checkpoint that cannot be written does to the run: stop it, or let it go on with the one before"""
    max_minutes: Positive | None = None
    """checkpoint and stop after this time; the same command continues (None: no limit)"""
    step_timeout_minutes: Annotated[float, Field(ge=0)] = 60
    """a step that takes longer counts as hung: its stack is shown and the process ends, to be tried again; 0 = never"""
    show_every: Count = 10
    """steps between metric tables on a terminal"""
    log_path: Path | None = None
    """the run's directory (None: runs_dir/DATASET-MODEL-LR-BATCH-TIME)"""
    behavior_if_log_dir_exists: Literal["ask", "delete", "resume", "raise"] = "ask"
    """what to do when log_path holds another run; ask behaves as raise without a terminal"""


class EvaluateSettings(Section):
    """How the result is measured."""

    tasks: tuple[str, ...] = ("ifeval",)
    """generation tasks, comma-separated: ifeval, inspect_evals/NAME, FILE.py@TASK of inspect-ai; none leaves the
    held-out preferences alone"""
    ifeval_path: str | None = None
    """JSONL of IFEval prompts (demo: the demo's held-out prompts; None: google/IFEval from the hub)"""
    ifeval_limit: Count | None = None
    """evaluate at most this many prompts of IFEval (None: all)"""
    nltk_data: Path | None = None
    """directory with tokenizers/punkt_tab/english, which some of IFEval's checkers need (None: where NLTK looks,
    NLTK_DATA first)"""
    task_limit: Count | None = None
    """evaluate at most this many samples of every other task (None: all)"""
    max_new_tokens: Count = 1280
    """most tokens of a response"""
    eval_temperature: Annotated[float, Field(ge=0)] = 0.0
    """sampling temperature of responses; 0 is greedy (a task's own setting comes first)"""
    eval_seed: int = 0
    """seed of the draws, where the temperature is above 0"""
    eval_engine: EngineName = "auto"
    """what generates responses: torch (our batches), paged (transformers' continuous batching), vllm (where installed);
    auto: vllm with eval_python; else in bf16 on a GPU vllm if it is installed, else paged; torch everywhere else"""
    eval_python: Path | None = None
    """interpreter of another environment that generates the responses, as /path/to/venv/bin/python: for vLLM, which
    shares none with Prefect (docs/vllm.md); it runs this dpo_core (None: this interpreter)"""
    eval_batch_size: Count | Literal["auto"] = "auto"
    """prompts generated together; auto: as many as memory has room for"""
    num_samples: Every = 8
    """held-out prompts whose responses are shown before and after training"""
    infrequent_prompts: Every = 0
    """IFEval prompts that the policy is scored on every infrequent_eval_every steps; 0 = none"""


class TrackSettings(Section):
    """Where runs and results go."""

    experiment_name: str = "dpo"
    """MLflow experiment"""
    tracking_uri: str | None = None
    """MLflow server or store (None: MLFLOW_TRACKING_URI, else sqlite in ./mlruns)"""
    runs_dir: Path = Path("runs")
    """home of run directories and of the stage cache (runs_dir/store)"""


class PromoteSettings(Section):
    """When the champion changes."""

    registered_model_name: str | None = None
    """name in the model registry (None: dpo-DATASET-MODEL)"""
    auto_promote: bool = True
    """move the champion alias when the gates allow it; false only records their verdicts"""
    min_prompt_strict_acc: Annotated[float, Field(ge=0, le=1)] | None = None
    """gate: share of prompts that a champion follows strictly (IFEval) at least (None: no minimum)"""
    min_test_accuracy: Annotated[float, Field(ge=0, le=1)] | None = None
    """gate: held-out preference accuracy of a champion at least (None: no minimum)"""
    require_improvement: bool = True
    """gate: better than the champion on one measure and worse on none; false: not significantly worse is enough"""
    require_approval: bool = False
    """a person must approve: the flow pauses, the Prefect UI or dpo approve answers; no answer leaves the champion"""
    approval_minutes: Positive = 60
    """how long the flow waits for the approval"""


class SweepSettings(Section):
    """How dpo sweep runs its members."""

    members_at_once: Count = 1
    """members of a sweep that run at the same time"""
    stop_hopeless_after: Annotated[float, Field(gt=0, le=1)] | None = 0.5
    """share of its steps after which a member is stopped whose best held-out accuracy, the upper end of its 95 %
    interval, is below the median of the other members' by then (None: never)"""


class Recipe(Section):
    """Everything that a run depends on."""

    data: DataSettings = DataSettings()
    render: RenderSettings = RenderSettings()
    model: ModelSettings = ModelSettings()
    warm_start: WarmStartSettings = WarmStartSettings()
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    track: TrackSettings = TrackSettings()
    promote: PromoteSettings = PromoteSettings()
    sweep: SweepSettings = SweepSettings()

    @model_validator(mode="after")
    def _settings_agree(self) -> "Recipe":
        if self.train.label_smoothing and self.train.loss in ("ipo", "hinge"):
            raise ValueError(f"label_smoothing has no meaning for loss={self.train.loss}")
        if self.warm_start.sft_steps and self.model.reference_model_name:
            raise ValueError("a warm start makes its own reference: leave out reference_model_name or set sft_steps=0")
        if self.model.model_name == "demo" and not (self.warm_start.sft_steps or self.model.load_checkpoint_path):
            raise ValueError("model_name=demo starts from random weights: set sft_steps, or use recipes/demo.toml")
        return self


SECTIONS: dict[str, type[Section]] = {
    name: field.annotation for name, field in Recipe.model_fields.items() if isinstance(field.annotation, type)
}

LEAVES: dict[str, str] = {leaf: section for section, kind in SECTIONS.items() for leaf in kind.model_fields}
