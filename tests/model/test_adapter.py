"""Runs that start from LoRA adapters: merged into their base first, which is then the reference."""

import json
import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from dpo_core.cache.store import Store, store_of
from dpo_core.config.recipe import ModelSettings, Recipe
from dpo_core.errors import RecipeError
from dpo_core.model import adapter, merge
from dpo_core.model.load import load_model
from dpo_core.model.locate import describe
from dpo_core.model.lora import make_trainable
from dpo_core.pipeline import base_model
from dpo_core.records import ModelSource
from dpo_core.stages.merge import MergeRequest
from dpo_core.train.batching.packing import branches, tree_batch
from dpo_core.train.logps import completion_logps
from dpo_core.train.loop import Run, steps
from tests import tiny


@pytest.fixture
def base(tmp_path: Path) -> ModelSource:
    return describe(tiny.directory(tmp_path / "base"), "tiny")


@pytest.fixture
def tuned(base: ModelSource) -> PeftModel:
    """A model with adapters that are not zero."""
    policy = make_trainable(load_model(base.path), ModelSettings(lora_rank=4), seed=0)
    assert isinstance(policy, PeftModel)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return policy


@pytest.fixture
def saved(tuned: PeftModel, base: ModelSource, tmp_path: Path) -> Path:
    path = tmp_path / "adapter"
    tuned.save_pretrained(path)
    (path / "dpo.json").write_text(json.dumps({"renderer_name": "role_colon", "base_fingerprint": base.fingerprint}))
    return path


def merged(base: ModelSource, saved: Path, store: Path) -> ModelSource:
    with Store(store).write("merge", "key") as draft:
        merge.run(MergeRequest(base=base, adapter=saved, name="tiny + adapter"), draft)
    source = Store(store).find("merge", "key", ModelSource)
    assert source is not None
    return source


def test_merged_weights_score_as_the_adapted_ones_and_a_run_starts_at_ln_2(
    base: ModelSource, tuned: PeftModel, saved: Path, tmp_path: Path
) -> None:
    merged_model = load_model(merged(base, saved, tmp_path / "store").path)
    batch = tree_batch([branches(pair) for pair in tiny.token_pairs(3)])
    torch.testing.assert_close(completion_logps(merged_model, batch), completion_logps(tuned, batch), atol=1e-5, rtol=0)
    split = tiny.rows(tmp_path, tiny.token_pairs(8))
    references = tiny.references(tmp_path, merged_model, split)
    policy = make_trainable(merged_model, ModelSettings(lora_rank=4), seed=0)
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-3)
    settings = Recipe.model_validate({"train": {"batch_size": 8}}).train
    first = next(steps(Run(policy, optimizer, split, references, settings)))
    assert first.values["dpo_loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_merged_weights_keep_the_renderer_of_the_adapters(base: ModelSource, saved: Path, tmp_path: Path) -> None:
    path = merged(base, saved, tmp_path / "store").path
    assert json.loads((path / "dpo.json").read_text()) == {"renderer_name": "role_colon"}


def test_adapters_of_another_shape_are_refused(saved: Path, tmp_path: Path) -> None:
    other = tiny.directory(tmp_path / "other", hidden_size=16)
    with pytest.raises(RecipeError, match="do not fit other"):
        merged(describe(other, "other"), saved, tmp_path / "store")


def test_truncated_adapters_are_refused(base: ModelSource, saved: Path, tmp_path: Path) -> None:
    file = saved / adapter.WEIGHTS
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(RecipeError, match=r"are broken \(adapter_model\.safetensors\)"):
        merged(base, saved, tmp_path / "store")


def test_adapters_of_other_weights_are_refused(saved: Path, tmp_path: Path) -> None:
    other = tiny.directory(tmp_path / "other", seed=5)
    recipe = Recipe.model_validate({"model": {"model_name": str(other), "load_checkpoint_path": saved}})
    with pytest.raises(RecipeError, match="were trained on other weights"):
        base_model.load(recipe, base_model.find(recipe), store_of(recipe))


def test_adapters_name_their_base_or_are_refused(saved: Path, base: ModelSource) -> None:
    assert adapter.base_model_name(saved) == str(base.path)
    config = json.loads((saved / "adapter_config.json").read_text())
    (saved / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(RecipeError, match="do not say which model"):
        adapter.base_model_name(saved)


def test_pickled_adapters_are_refused(saved: Path) -> None:
    (saved / "adapter_model.safetensors").rename(saved / "adapter_model.bin")
    with pytest.raises(RecipeError, match="never unpickled"):
        base_model.find(Recipe.model_validate({"model": {"load_checkpoint_path": saved}}))


def test_adapters_are_checked_with_the_weights_that_they_are_merged_into(saved: Path, base: ModelSource) -> None:
    found = base_model.find(Recipe.model_validate({"model": {"load_checkpoint_path": saved}}))
    assert (found.weights, found.adapter) == (base.path, saved)
    assert found.merged_name == f"{base.path} + {saved.name}"
