"""A training process's work on a run: everything loaded, and continued from the last whole checkpoint."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from dpo_core.errors import RecipeError
from dpo_core.model.load import check_vocabulary, device, load_model, without_dropout
from dpo_core.model.lora import trainable
from dpo_core.recipe import TrainSettings
from dpo_core.render.registry import get_renderer
from dpo_core.render.rendered import Rows, open_split
from dpo_core.render.renderer import Renderer
from dpo_core.render.tokenizer import load_tokenizer
from dpo_core.requests import TrainRequest
from dpo_core.train import budget, checkpoint, journal, run_dir
from dpo_core.train.flops import matmul_peak
from dpo_core.train.layout import choose
from dpo_core.train.logps import plain
from dpo_core.train.loop import Run
from dpo_core.train.packing import Layout
from dpo_core.train.reference import OnTheFly, Reference, References, open_references
from dpo_core.train.stopping import StopFlag


@dataclass(frozen=True)
class Session:
    """One process's work on a run: from ``done`` steps to the end."""

    request: TrainRequest
    run: Run
    test_split: tuple[Rows, References]
    renderer: Renderer
    done: int
    stop: StopFlag

    @property
    def log_path(self) -> Path:
        """The run's directory."""
        return self.request.log_path


def begin(request: TrainRequest, stop: StopFlag) -> Session:
    """Load everything; continue from the last whole checkpoint where there is one."""
    train, source = request.train, request.model
    deterministic(train.deterministic)
    model = load_model(source.path, train.seed, source.trust_remote_code, request.frozen_dtype)
    rows = open_split(request.rendered.path, "train")
    check_vocabulary(model, rows.largest_id())
    layout = choose(model, train.layout, request.rendered)
    policy = prepared(trainable(model, request.settings, train.seed), train)
    run = Run(
        policy,
        adamw(policy, train),
        rows,
        reference(request, policy),
        train,
        layout=layout,
        token_budget=settled_budget(request, policy, rows, layout),
        peak_flops=matmul_peak(device(), train.precision),
    )
    tokenizer = load_tokenizer(request.rendered.tokenizer_path, source.trust_remote_code)
    renderer = get_renderer(request.rendered.renderer_name, tokenizer)
    test_split = open_split(request.rendered.path, "test"), open_references(request.reference.path, "test")
    return Session(request, run, test_split, renderer, resume(request.log_path, run), stop)


def deterministic(wanted: bool) -> None:
    """Kernels that give the same bits every time, or an error where there is none."""
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted)


def prepared(policy: nn.Module, train: TrainSettings) -> nn.Module:
    """The policy as it trains: without dropout, with what the recipe asks for of recomputation and compilation.

    Raises RecipeError when compilation is asked for without a GPU.
    """
    without_dropout(policy)
    if train.activation_checkpointing:
        # Layers are computed again only in training mode; without dropout that mode changes nothing else.
        plain(policy).activation_checkpointing_enable()
        policy.train()
    if train.compile_model:
        if device().type != "cuda":
            raise RecipeError(
                "compile_model=true, and there is no GPU.", "Only GPU kernels are compiled.", "Leave it out."
            )
        # The decoder is what is called; the head has its own way (logps.py).
        plain(policy).get_decoder().compile(dynamic=False)
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


def reference(request: TrainRequest, policy: nn.Module) -> Reference:
    """The stored log-probabilities, or the model to ask in every step: the policy without adapters if that is it."""
    if not request.on_the_fly:
        return open_references(request.reference.path, "train")
    source, precision = request.reference.model, request.train.precision
    if request.settings.lora_rank and source.fingerprint == request.model.fingerprint:
        return OnTheFly(policy, precision)
    frozen = load_model(source.path, request.train.seed, source.trust_remote_code, request.frozen_dtype)
    return OnTheFly(frozen.requires_grad_(False), precision)


def settled_budget(request: TrainRequest, policy: nn.Module, rows: Rows, layout: Layout) -> int:
    """The recipe's token budget; ``auto`` is found once and kept with the run, whose continuation must be the same."""
    wanted = request.train.token_budget
    if isinstance(wanted, int):
        return wanted
    config = request.log_path / run_dir.CONFIG
    told = json.loads(config.read_text())
    if "token_budget" not in told:
        told["token_budget"] = budget.find(policy, rows, layout, request.train.precision)
        aside = config.with_suffix(".new")
        aside.write_text(json.dumps(told, indent=1))
        aside.replace(config)
    return int(told["token_budget"])


def resume(log_path: Path, run: Run) -> int:
    """Steps already done: the last checkpoint is loaded and the journal cut back to it."""
    found = checkpoint.latest(log_path)
    done = found[0] if found else 0
    if found:
        checkpoint.load(found[1], run.policy, run.optimizer)
    for name in (run_dir.METRICS, run_dir.SAMPLES, run_dir.CHECKPOINTS):
        rows = journal.read(log_path / name) if found else []
        kept = [row for row in rows if row["step"] <= done and row.get("name") != run_dir.FINAL]
        journal.keep(log_path / name, kept)
    return done
