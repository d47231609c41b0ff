"""Model export at the end of a run: the trained weights written, read back, and measured as they were read."""

import gc
import json
import shutil
from dataclasses import replace
from typing import NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from dpo_core.errors import TrainingError
from dpo_core.model.adapter import BASE_FINGERPRINT
from dpo_core.model.load import load_model
from dpo_core.model.locate import describe
from dpo_core.model.lora import merge_adapters
from dpo_core.model.save_model import save_model
from dpo_core.records import Checkpoint
from dpo_core.render.registry import CHECKPOINT_METADATA
from dpo_core.system.device import free_memory
from dpo_core.system.malloc_tuning import trim
from dpo_core.train.batching.memory_estimate import WORKSPACE
from dpo_core.train.batching.packing import branches, build
from dpo_core.train.checkpoint import journal, run_dir
from dpo_core.train.export_noise import export_differences
from dpo_core.train.logps import completion_logps
from dpo_core.train.reference import OnTheFlyReference
from dpo_core.train.runtime.compile_layers import uncompiled
from dpo_core.train.runtime.setup import Session
from dpo_core.train.validation import ValidationConfig, ValidationResult, validate, validation_config

# Held-out pairs by which exporting is judged in a run that evaluates none, and by which merging is checked in float32.
COMPARED_PAIRS, MERGED_PAIRS = 256, 8
# Mean difference in nats a token that merging in float32 may make; a wrong merge makes a hundred times that.
MERGE_TOLERANCE = 1e-3
# Free memory of a GPU that a byte of weights wants, with activations of a few pairs and what stays in fragments.
MEMORY_FACTOR = 1.2


class ExportResult(NamedTuple):
    """The final model, and the last step's metrics that it brings: ``test/…`` of the weights as they were written, and
    ``export/…``, how they differ from those that were trained."""

    checkpoint: Checkpoint
    metrics: dict[str, float]


def export_model(session: Session) -> ExportResult:
    """Export the trained model, adapters merged, in transformers' format with tokenizer and renderer; measure it.

    The policy, the optimizer's state and a reference that is asked in every step are used up. A LoRA run also leaves
    the adapters alone, in peft's format. Raises TrainingError, with the checkpoints still there, when what was trained
    is not finite, or what was written is not what was trained.
    """
    check_finite(session.run.policy, session)
    free_training_memory(session)
    path = session.log_path / run_dir.FINAL
    trained = session.measured.pop(session.run.total_steps, None) or validate_policy(session)
    exported = validate_exported(session, write_and_read_back(session))
    path.with_name(f".{run_dir.FINAL}").rename(path)
    noise = export_differences(trained.logps, exported.logps)
    checkpoint = final_checkpoint(session, noise)
    row = {"name": run_dir.FINAL, "step": checkpoint.step, "path": str(path)}
    journal.append(session.log_path / run_dir.CHECKPOINTS, row)
    if not session.request.train.eval_every:
        return ExportResult(checkpoint, noise)
    noise["export/accuracy_in_memory"] = trained.metrics["test/accuracy"]
    return ExportResult(checkpoint, journal_metrics(exported.metrics_with_noise(checkpoint.margin_noise)) | noise)


def journal_metrics(metrics: dict[str, float]) -> dict[str, float]:
    """The held-out metrics that a journal takes: all ``test/…``, without those by source and by length."""
    return {name: value for name, value in metrics.items() if name.startswith("test/")}


def validate_policy(session: Session) -> ValidationResult:
    """The policy's held-out preferences, in memory and as it trains, but for the compilation of its layers."""
    run = session.run
    settings = limit_pairs(session, ValidationConfig(run.settings, run.layout))
    with uncompiled(run.policy):
        return validate(run.policy, session.request.rendered, session.request.reference, settings)


def validate_exported(session: Session, model: PreTrainedModel) -> ValidationResult:
    """An exported model's held-out preferences, as the evaluate stage will find them."""
    request = session.request
    settings = limit_pairs(session, validation_config(model, request.train, request.rendered, request.reference))
    return validate(model, request.rendered, request.reference, settings)


def limit_pairs(session: Session, settings: ValidationConfig) -> ValidationConfig:
    """All held-out pairs, or as many as tell what exporting changed where the recipe evaluates none."""
    return settings if session.request.train.eval_every else replace(settings, max_pairs=COMPARED_PAIRS)


def write_and_read_back(session: Session) -> PreTrainedModel:
    """Write the model beside its final place, and read it back in the type that models are measured in."""
    request, policy = session.request, session.run.policy
    if isinstance(policy, PeftModel):
        save_adapter(session, policy)
    final = session.log_path / run_dir.FINAL
    aside = final.with_name(f".{run_dir.FINAL}")
    for leftover in (aside, final):
        shutil.rmtree(leftover, ignore_errors=True)
    with uncompiled(policy):
        merged_model = merge_policy(session)
    merged_model.to(getattr(torch, request.export_dtype))
    check_finite(merged_model, session)
    make_room(merged_model, weight_bytes(merged_model, getattr(torch, request.frozen_dtype)))
    save_model(merged_model, request.rendered.tokenizer_path, session.renderer.name, aside)
    exported = load_model(aside, trust_remote_code=request.model.trust_remote_code, dtype=request.frozen_dtype)
    check_written(merged_model, exported, session)
    free_model_memory(session, merged_model)
    return exported


def merge_policy(session: Session) -> PreTrainedModel:
    """The policy as plain weights in float32, checked where adapters were added into them.

    In float32 a right merge changes next to nothing, whatever the type that the weights are written in then rounds.
    """
    policy = session.run.policy
    if not isinstance(policy, PeftModel):
        return merge_adapters(policy)
    make_room(policy, weight_bytes(policy, torch.float32) - weight_bytes(policy))
    before = heldout_logps(session, policy.float())
    merged_model = merge_adapters(policy)
    check_merged(before, heldout_logps(session, merged_model), session)
    return merged_model


def heldout_logps(session: Session, model: nn.Module) -> Tensor:
    """Log-probabilities of the first held-out pairs, (M,) on the CPU, computed in the weights' own type."""
    rows = session.test_split[0]
    items = [branches(rows[index]) for index in range(min(MERGED_PAIRS, len(rows)))]
    return completion_logps(model, build(session.run.layout, items, next(model.parameters()).device)).cpu()


def make_room(model: nn.Module, extra_bytes: int) -> None:
    """Take a model off a GPU that has no room for the bytes that are wanted beside it."""
    device = next(model.parameters()).device
    if device.type != "cpu" and extra_bytes and free_memory(device) < MEMORY_FACTOR * extra_bytes + WORKSPACE["cuda"]:
        model.to("cpu")
        release_memory()


def weight_bytes(model: nn.Module, dtype: torch.dtype | None = None) -> int:
    """Bytes of a model's weights, in their own type or in another."""
    return sum(p.numel() * (dtype or p.dtype).itemsize for p in model.parameters())


def check_finite(model: nn.Module, session: Session) -> None:
    """Raises TrainingError when a weight is not a finite number."""
    wrong = [name for name, weight in model.named_parameters() if not torch.isfinite(weight).all()]
    if wrong:
        raise TrainingError(
            f"{len(wrong)} tensors of the trained model hold values that are not finite, as {min(wrong)}.",
            "Weights must be finite numbers: this run has diverged.",
            f"Train again with a lower learning_rate and another log_path; earlier checkpoints in {session.log_path}"
            " stand.",
        )


def check_merged(before: Tensor, after: Tensor, session: Session) -> None:
    """Raises TrainingError when adding the adapters into the weights changed what the model says."""
    difference = (before - after).abs().mean().item()
    if not torch.isfinite(after).all() or difference > MERGE_TOLERANCE:
        raise TrainingError(
            f"The merged model scores held-out pairs {difference:.3g} nats a token away from the trained one, in"
            " float32.",
            f"Merging adapters rounds, by {MERGE_TOLERANCE:g} nats a token at most.",
            f"The checkpoints in {session.log_path} stand; report this model's architecture.",
        )


def check_written(merged_model: nn.Module, read: nn.Module, session: Session) -> None:
    """Raises TrainingError when a tensor that was read back is not the one that was written, to the bit."""
    written, read_back = merged_model.state_dict(), read.state_dict()
    other = [
        name for name in written.keys() | read_back.keys() if not same_tensor(written.get(name), read_back.get(name))
    ]
    if other:
        raise TrainingError(
            f"{len(other)} tensors of the exported model are not those that were written, as {min(other)}.",
            "An export must be the model that was trained.",
            f"The checkpoints in {session.log_path} stand; try again on a disk that keeps what it is given.",
        )


def same_tensor(written: Tensor | None, read_back: Tensor | None) -> bool:
    """Whether a tensor is there on both sides with equal values, of whichever of the two types and devices."""
    if written is None or read_back is None or written.shape != read_back.shape:
        return False
    return torch.equal(written.to(read_back.device, read_back.dtype), read_back)


def free_training_memory(session: Session) -> None:
    """Give the memory back of what only training needs: gradients, moments, a reference model of its own."""
    run = session.run
    run.optimizer.state.clear()
    run.optimizer.zero_grad(set_to_none=True)
    if isinstance(run.reference, OnTheFlyReference) and run.reference.model is not run.policy:
        run.reference.model.to("meta")
    release_memory()


def free_model_memory(session: Session, merged_model: nn.Module) -> None:
    """Give the memory of the trained model back."""
    merged_model.to("meta")
    session.run.policy.to("meta")
    release_memory()


def release_memory() -> None:
    """Hand memory that is free inside this process to the system, and to the GPU."""
    gc.collect()
    trim()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def final_checkpoint(session: Session, noise: dict[str, float]) -> Checkpoint:
    """The final model as the stages know it."""
    path = session.log_path / run_dir.FINAL
    return Checkpoint(
        path=path,
        fingerprint=describe(path, session.request.model.name).fingerprint,
        name=run_dir.FINAL,
        step=session.run.total_steps,
        log_path=session.log_path,
        renderer_name=session.renderer.name,
        export=noise,
    )


def save_adapter(session: Session, policy: PeftModel) -> None:
    """The adapters alone, as peft loads them, with the renderer and which weights they belong to in ``dpo.json``."""
    path, base = session.log_path / run_dir.ADAPTER, session.request.model
    shutil.rmtree(path, ignore_errors=True)
    policy.save_pretrained(path, safe_serialization=True)
    note = {"renderer_name": session.renderer.name, BASE_FINGERPRINT: base.fingerprint}
    (path / CHECKPOINT_METADATA).write_text(json.dumps(note))
