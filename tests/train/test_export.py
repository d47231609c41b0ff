"""The export at the end of a run: what it holds, what stops it, and what is told when memory runs out in it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.numpy import save_file
from torch import nn

from dpo_core.cache.reference_cache import split_file
from dpo_core.config.recipe import ModelSettings, TrainSettings
from dpo_core.errors import OutOfMemoryError, StoppedError, TrainingError
from dpo_core.model.load import load_model
from dpo_core.model.lora import make_trainable
from dpo_core.render.token_dataset import open_split, write_split
from dpo_core.train import export, train
from dpo_core.train.loop import Run, steps
from dpo_core.train.reference import CachedReference, OnTheFlyReference, score_pairs
from dpo_core.train.runtime.setup import adamw
from tests import tiny

SETTINGS = TrainSettings(batch_size=4, max_steps=1, learning_rate=1e-3, precision="bf16")


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Any]:
    """A run whose steps are done: LoRA on frozen bf16 weights, with a reference model that is asked in every step."""

    def made(lora_rank: int = 4, dtype: str = "bfloat16") -> Any:
        directory = tiny.directory(tmp_path / "model")
        pairs = tiny.token_pairs(8)
        for name in ("train", "test"):
            write_split(tmp_path / f"{name}.arrow", pairs)
        rows = open_split(tmp_path, "train")
        reference = load_model(directory, dtype=dtype)
        save_file(score_pairs(reference, rows, list(range(8)), "tree", "bf16"), split_file(tmp_path, "test"))
        policy = make_trainable(load_model(directory, dtype=dtype), ModelSettings(lora_rank=lora_rank), seed=0)
        known = OnTheFlyReference(load_model(directory, dtype=dtype).requires_grad_(False), "bf16")
        run = Run(policy, adamw(policy, SETTINGS), rows, known, SETTINGS)
        list(steps(run))
        model = SimpleNamespace(name="tiny", trust_remote_code=False, fingerprint="f", path=directory)
        rendered = SimpleNamespace(path=tmp_path, tokenizer_path=directory, test_pairs=8, fingerprint="r")
        request = SimpleNamespace(
            model=model,
            rendered=rendered,
            reference=SimpleNamespace(path=tmp_path, layouts={}),
            train=SETTINGS.model_copy(update={"eval_every": 0, "layout": "tree"}),
            export_dtype=dtype,
            frozen_dtype=dtype,
        )
        (tmp_path / "log").mkdir()
        return SimpleNamespace(
            request=request,
            run=run,
            test_split=(rows, CachedReference(split_file(tmp_path, "test"))),
            renderer=SimpleNamespace(name="role_colon"),
            log_path=tmp_path / "log",
            measured={},
            done=0,
        )

    return made


@pytest.mark.parametrize(("lora_rank", "dtype"), [(4, "bfloat16"), (0, "float32")])
def test_what_only_training_needs_is_given_back_before_the_weights_are_doubled(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, lora_rank: int, dtype: str
) -> None:
    session = make(lora_rank, dtype)
    assert session.run.optimizer.state
    merge, seen = export.merge_policy, []

    def looked(given: Any) -> Any:
        moments = list(given.run.optimizer.state)
        gradients = [p for p in given.run.policy.parameters() if p.grad is not None]
        where = {p.device.type for p in given.run.reference.model.parameters()}
        seen.append((moments, gradients, where))
        return merge(given)

    monkeypatch.setattr(export, "merge_policy", looked)
    done = export.export_model(session)
    assert seen == [([], [], {"meta"})]
    assert done.checkpoint.step == 1
    assert load_model(done.checkpoint.path, dtype=dtype).dtype == getattr(torch, dtype)


def test_a_reference_that_is_the_policy_itself_stays(make: Callable[..., Any]) -> None:
    session = make()
    session.run = replace(session.run, reference=OnTheFlyReference(session.run.policy, "bf16"))
    export.free_training_memory(session)
    assert {p.device.type for p in session.run.policy.parameters()} == {"cpu"}


@pytest.mark.parametrize(("free", "moved"), [(10**9, False), (10**5, True)])
def test_a_gpu_without_room_leaves_the_doubling_to_host_memory(
    monkeypatch: pytest.MonkeyPatch, free: int, moved: bool
) -> None:
    """The meta device stands for a GPU; going to the CPU is noted."""
    went: list[str] = []

    class Model(nn.Linear):
        def to(self, *where: Any, **_: Any) -> Any:
            went.append(where[0])
            return self

    model = Model(100, 100, device="meta", dtype=torch.bfloat16)
    monkeypatch.setattr(export, "free_memory", lambda _: free)
    monkeypatch.setitem(export.WORKSPACE, "cuda", 10**5)
    export.make_room(model, export.weight_bytes(model, torch.float32) - export.weight_bytes(model))
    assert went == (["cpu"] if moved else [])
    export.make_room(model.float(), 0)  # float32 weights are not doubled
    assert went == (["cpu"] if moved else [])


def test_a_run_that_diverged_is_not_the_disks_fault(make: Callable[..., Any]) -> None:
    session = make()
    weight = next(p for p in session.run.policy.parameters() if p.requires_grad)
    weight.data[0, 0] = torch.nan
    with pytest.raises(TrainingError, match=r"1 tensors of the trained model .* not finite, as .*lower learning_rate"):
        export.export_model(session)
    assert not list(session.log_path.iterdir())


def test_memory_that_runs_out_in_the_export_is_told_with_what_helps(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = make()
    session.stop = SimpleNamespace(signalled=False, timed_out=False)

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(export, "save_model", full)
    with pytest.raises(OutOfMemoryError, match=r"in the export .* only the export is left to do") as raised:
        train.export_and_record(session, None, None)  # type: ignore[arg-type]
    assert "token_budget" not in str(raised.value)


@pytest.mark.parametrize(
    ("signalled", "timed_out", "done", "saved", "leaves"),
    [
        (True, False, 0, True, True),
        (False, True, 0, True, True),
        (False, True, 6, True, False),  # each process does something, however short its time
        (True, False, 6, True, True),
        (True, False, 0, False, False),  # a disk that did not take the checkpoint: all would be lost
        (False, False, 0, True, False),
    ],
)
def test_a_stop_before_the_export_leaves_it_to_the_next_process(
    tmp_path: Path, signalled: bool, timed_out: bool, done: int, saved: bool, leaves: bool
) -> None:
    (tmp_path / "checkpoints" / ("000006" if saved else "000004")).mkdir(parents=True)
    stop = SimpleNamespace(signalled=signalled, timed_out=timed_out, why=", as max_minutes says")
    session: Any = SimpleNamespace(run=SimpleNamespace(total_steps=6), log_path=tmp_path, stop=stop, done=done)
    if not leaves:
        train.stop_before_export(session)
        return
    with pytest.raises(StoppedError, match=r"after the last step, 6, before the export.*000006.*only the export"):
        train.stop_before_export(session)
