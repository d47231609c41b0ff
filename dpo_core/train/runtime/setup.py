"""Setup of a training process: loads model, data and reference, and resumes from the latest checkpoint."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from dpo_core.config.recipe import TrainSettings
from dpo_core.errors import RecipeError
from dpo_core.model import compat
from dpo_core.model.load import check_vocabulary, device, disable_dropout, load_model
from dpo_core.model.lora import make_trainable
from dpo_core.records import StepMetrics
from dpo_core.render.registry import get_renderer
from dpo_core.render.renderer import Renderer
from dpo_core.render.token_dataset import TokenDataset, open_split
from dpo_core.render.tokenizer import load_tokenizer
from dpo_core.stages.train import TrainRequest
from dpo_core.train import data_order
from dpo_core.train.batching import auto_token_budget, budget_attempt, budget_note
from dpo_core.train.batching.auto_token_budget import BudgetHistory, BudgetPlan
from dpo_core.train.batching.batch_layout import layout_of_run
from dpo_core.train.batching.memory_estimate import Workload
from dpo_core.train.batching.packing import Layout
from dpo_core.train.checkpoint import checkpoint_state, journal, run_dir
from dpo_core.train.logps import causal_model
from dpo_core.train.loop import Run
from dpo_core.train.reference import CachedReference, OnTheFlyReference, Reference, open_references
from dpo_core.train.runtime.compile_layers import compile_policy
from dpo_core.train.runtime.flops import matmul_peak
from dpo_core.train.runtime.signals import StopFlag
from dpo_core.train.validation import ValidationResult

WIDTH = {"float32": 4, "bfloat16": 2}  # bytes
PolicyMetrics = Callable[[nn.Module, Renderer], dict[str, float]]


def no_metrics(policy: nn.Module, renderer: Renderer) -> dict[str, float]:
    """A run without an evaluator: its infrequent evaluations measure nothing else."""
    return {}


@dataclass(frozen=True)
class Session:
    """One process's work on a run: from ``done`` steps to the end.

    ``last``: what was measured in the last step, where that is done and the model was not exported then.
    ``measured``: held-out preferences of the policy by step, kept for the export to be compared with.
    """

    request: TrainRequest
    run: Run
    test_split: tuple[TokenDataset, CachedReference]
    renderer: Renderer
    done: int
    stop: StopFlag
    lines: list[str]
    plan: BudgetPlan
    policy_metrics: PolicyMetrics = no_metrics
    last: StepMetrics | None = None
    measured: dict[int, ValidationResult] = field(default_factory=dict)

    @property
    def log_path(self) -> Path:
        """The run's directory."""
        return self.request.log_path


def start_session(request: TrainRequest, stop: StopFlag) -> Session:
    """Load everything and resume from the latest undamaged checkpoint, if there is one."""
    train, source = request.train, request.model
    set_deterministic(train.deterministic)
    model = load_model(source.path, train.seed, source.trust_remote_code, request.frozen_dtype)
    rows = open_split(request.rendered.path, "train")
    check_vocabulary(model, rows.largest_id())
    layout = layout_of_run(model, train.layout, request.rendered, request.reference)
    policy = prepare_policy(make_trainable(model, request.settings, train.seed), train)
    reference = make_reference(request, policy)
    plan = plan_token_budget(request, policy, rows, layout)  # its probes are not worth a compilation
    run = Run(
        compile_policy(policy, train),
        adamw(policy, train),
        rows,
        reference,
        train,
        layout=layout,
        token_budget=plan.tokens,
        peak_flops=matmul_peak(device(), train.precision),
        heap_limit=plan.expected if device().type == "cpu" else None,
    )
    tokenizer = load_tokenizer(request.rendered.tokenizer_path, source.trust_remote_code)
    renderer = get_renderer(request.rendered.renderer_name, tokenizer)
    test_split = open_split(request.rendered.path, "test"), open_references(request.reference.path, "test")
    done, lines, last = resume(request, run)
    return Session(request, run, test_split, renderer, done, stop, [*plan.lines, *lines], plan, last=last)


def set_deterministic(enabled: bool) -> None:
    """Kernels that give the same bits every time, or an error where there is none."""
    if enabled:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(enabled)


def prepare_policy(policy: nn.Module, train: TrainSettings) -> nn.Module:
    """The policy as it trains: without dropout, with recomputation if the recipe asks for it."""
    disable_dropout(policy)
    if train.activation_checkpointing:
        # Layers are computed again only in training mode; without dropout that mode changes nothing else.
        compat.recompute_activations(causal_model(policy))
        policy.train()
    return policy


def adamw(policy: nn.Module, train: TrainSettings) -> torch.optim.Optimizer:
    """AdamW (arXiv 1711.05101), fused, over everything that trains."""
    return torch.optim.AdamW(
        [parameter for parameter in policy.parameters() if parameter.requires_grad],
        lr=train.learning_rate,
        betas=(train.adam_beta1, train.adam_beta2),
        eps=train.adam_eps,
        weight_decay=train.weight_decay,
        fused=True,
    )


def make_reference(request: TrainRequest, policy: nn.Module) -> Reference:
    """The stored log-probabilities, or the model to ask in every step: the policy without adapters if that is it."""
    if not request.on_the_fly:
        return open_references(request.reference.path, "train")
    source, precision = request.reference.model, request.train.precision
    if request.settings.lora_rank and source.fingerprint == request.model.fingerprint:
        return OnTheFlyReference(policy, precision)
    frozen = load_model(source.path, request.train.seed, source.trust_remote_code, request.frozen_dtype)
    return OnTheFlyReference(frozen.requires_grad_(False), precision)


def plan_token_budget(request: TrainRequest, policy: nn.Module, rows: TokenDataset, layout: Layout) -> BudgetPlan:
    """The recipe's token budget; ``auto`` is found once and kept with the run, whose continuation must be the same."""
    train, batches = request.train, auto_token_budget.first_batches(len(rows), request.train)
    work = workload(request, policy, rows, layout)
    if train.token_budget != "auto":
        return auto_token_budget.plan(work, train.token_budget, BudgetHistory(), batches)
    config = run_dir.read_config(request.log_path) or {}
    past = BudgetHistory(config.get("token_budget"), budget_attempt.failed_budget(request.log_path / budget_note.NOTE))
    plan = auto_token_budget.plan(work, "auto", past, batches)
    if plan.tokens != past.kept:
        run_dir.write_config(request.log_path, config | {"token_budget": plan.tokens})
    return plan


def workload(request: TrainRequest, policy: nn.Module, rows: TokenDataset, layout: Layout) -> Workload:
    """What the run will ask of memory."""
    train = request.train
    return Workload(
        policy,
        rows,
        layout,
        train.precision,
        saves=saves_during_training(train, len(rows)),
        sampled=sampled_tokens(request) if train.infrequent_eval_every else 0,
        evaluated=True,  # at the end in any case
        exported=WIDTH[request.export_dtype] + WIDTH[request.frozen_dtype],
    )


def sampled_tokens(request: TrainRequest) -> int:
    """Tokens in the cache when the held-out prompts, which nothing cuts, are answered together."""
    prompts = open_split(request.rendered.path, "test").whole_prompts(request.samples)
    return len(prompts) * (request.max_new_tokens + max(map(len, prompts), default=0))


def saves_during_training(train: TrainSettings, pairs: int) -> bool:
    """Whether checkpoints are written while training goes on."""
    by_steps = 0 < train.save_every < data_order.total_steps(pairs, train)
    return by_steps or bool(train.save_every_minutes or train.best_metric)


def resume(request: TrainRequest, run: Run) -> tuple[int, list[str], StepMetrics | None]:
    """Steps already done, lines about them, and the last step's metrics where that is done and only the export is not:
    the newest whole checkpoint is loaded, the journal cut back to it.

    Raises RecipeError when more steps are done than the run is to have.
    """
    found, wrong = checkpoint_state.latest(request.log_path)
    lines = [f"Checkpoint {name} is passed over: {cause}." for name, cause in wrong.items()]
    if found is None:
        checkpoint_state.truncate_run(request.log_path, None)
        return 0, lines, None
    if found.step > run.total_steps:
        raise RecipeError(
            f"The run in {request.log_path} has {found.step} steps, and {run.total_steps} are asked for.",
            "A run can be continued or extended, not shortened.",
            "Raise max_steps or num_epochs, or choose another log_path.",
        )
    checkpoint_state.load(found.path, run.policy, run.optimizer)
    row = checkpoint_state.last_step_row(request.log_path / run_dir.METRICS, found.state)
    checkpoint_state.truncate_run(request.log_path, found)
    if row and found.step < run.total_steps:
        journal.append(request.log_path / run_dir.METRICS, row)
    lines.append(f"Continuing after step {found.step} from its checkpoint.")
    if found.state["run"] != request.fingerprint and run.settings.lr_schedule != "constant":
        lines.append(
            f"The run is extended: steps 1 to {found.step} had the {run.settings.lr_schedule} schedule of a shorter"
            f" run, and the rest have that of {run.total_steps} steps."
        )
    return found.step, lines, journal.from_row(row) if row and found.step == run.total_steps else None
