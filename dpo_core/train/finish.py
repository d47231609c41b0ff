"""The end of a run: the trained model written, read back, and scored again before it counts."""

import json
import shutil

import torch
from peft import PeftModel
from torch import Tensor, nn

from dpo_core.errors import TrainingError
from dpo_core.model.adapter import BASE_FINGERPRINT
from dpo_core.model.export import save_model
from dpo_core.model.load import device, load_model
from dpo_core.model.lora import merged
from dpo_core.model.source import describe
from dpo_core.records import Checkpoint
from dpo_core.render.registry import STORED
from dpo_core.train import journal, run_dir
from dpo_core.train.logps import completion_logps
from dpo_core.train.packing import branches, build
from dpo_core.train.session import Session

CHECKED_PAIRS = 8
# Mean difference in nats a token: float32 merging rounds, bf16 weights round more.
NEARNESS = {"fp32": 1e-3, "bf16": 0.05}


def finish(session: Session) -> Checkpoint:
    """Export the trained model, adapters merged, in transformers' format with tokenizer and renderer.

    A LoRA run also leaves the adapters alone, in peft's format. Raises TrainingError, with the checkpoints still there,
    when what was written does not score as what was trained.
    """
    request, path = session.request, session.log_path / run_dir.FINAL
    told = scores(session, session.run.policy)
    if isinstance(session.run.policy, PeftModel):
        save_adapter(session, session.run.policy)
    aside = path.with_name(f".{run_dir.FINAL}")
    for leftover in (aside, path):
        shutil.rmtree(leftover, ignore_errors=True)
    save_model(merged(session.run.policy), request.rendered.tokenizer_path, session.renderer.name, aside)
    check(told, scores(session, load_model(aside, trust_remote_code=request.model.trust_remote_code)), session)
    aside.rename(path)
    step = session.run.total
    row = {"name": run_dir.FINAL, "step": step, "path": str(path)}
    journal.append(session.log_path / run_dir.CHECKPOINTS, row)
    source = describe(path, request.model.name)
    return Checkpoint(
        path=path,
        fingerprint=source.fingerprint,
        name=run_dir.FINAL,
        step=step,
        log_path=session.log_path,
        renderer_name=session.renderer.name,
    )


def save_adapter(session: Session, policy: PeftModel) -> None:
    """The adapters alone, as peft loads them, with the renderer and which weights they belong to in ``dpo.json``."""
    path, base = session.log_path / run_dir.ADAPTER, session.request.model
    shutil.rmtree(path, ignore_errors=True)
    policy.save_pretrained(path, safe_serialization=True)
    note = {"renderer_name": session.renderer.name, BASE_FINGERPRINT: base.fingerprint}
    (path / STORED).write_text(json.dumps(note))


def scores(session: Session, model: nn.Module) -> Tensor:
    """Log-probabilities of the first held-out pairs, (M,) on the CPU."""
    rows, run = session.test_split[0], session.run
    items = [branches(rows[index]) for index in range(min(CHECKED_PAIRS, len(rows)))]
    return completion_logps(model, build(run.layout, items, device()), run.settings.precision).cpu()


def check(trained: Tensor, exported: Tensor, session: Session) -> None:
    """Raises TrainingError when the exported model gives other scores than the trained one."""
    away = (trained - exported).abs().mean().item()
    if not torch.isfinite(exported).all() or away > NEARNESS[session.run.settings.precision]:
        raise TrainingError(
            f"The exported model scores held-out pairs {away:.3g} nats a token away from the trained one.",
            "An export must be the model that was trained.",
            f"The checkpoints in {session.log_path} stand; report this model's architecture.",
        )
