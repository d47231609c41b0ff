"""What a training process prepares before its first step."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dpo_core.config.recipe import ModelSettings, Recipe, TrainSettings
from dpo_core.errors import RecipeError, TrainingError
from dpo_core.model.load import check_vocabulary
from dpo_core.model.locate import describe
from dpo_core.model.lora import make_trainable
from dpo_core.pipeline import base_model
from dpo_core.train import export
from dpo_core.train.runtime import setup
from dpo_core.train.runtime.compile_layers import compile_policy
from tests import tiny


def test_compilation_needs_a_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(RecipeError, match="no GPU"):
        compile_policy(tiny.llama(), TrainSettings(compile_model=True))


def test_the_determinism_flag_reaches_torch() -> None:
    try:
        setup.set_deterministic(True)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        setup.set_deterministic(False)
    assert not torch.are_deterministic_algorithms_enabled()


def test_lora_without_a_matching_layer_is_refused() -> None:
    with pytest.raises(RecipeError, match="LoRA finds no layer"):
        make_trainable(tiny.llama(), ModelSettings(lora_rank=4, lora_targets=("no_such_proj",)), seed=0)


def test_every_token_needs_an_embedding_and_spare_ones_do_no_harm() -> None:
    check_vocabulary(tiny.llama(), tiny.VOCABULARY - 1)
    with pytest.raises(
        RecipeError, match=f"has token id {tiny.VOCABULARY}; the model in .* has {tiny.VOCABULARY} embeddings"
    ):
        check_vocabulary(tiny.llama(), tiny.VOCABULARY)


def test_a_reference_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    model = describe(tiny.directory(tmp_path / "one"), "one")
    other = tiny.directory(tmp_path / "other")
    (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text() + " ")
    recipe = Recipe.model_validate({"model": {"model_name": "one", "reference_model_name": str(other)}})
    with pytest.raises(RecipeError, match="another tokenizer"):
        base_model.reference_model(recipe, model)


def test_a_merge_that_scores_differently_does_not_count() -> None:
    run: Any = SimpleNamespace(log_path=Path("log"))
    export.check_merged(torch.zeros(4), torch.full((4,), 5e-4), run)
    for wrong in (torch.full((4,), 2e-3), torch.full((4,), torch.nan)):
        with pytest.raises(TrainingError, match="nats a token away from the trained one"):
            export.check_merged(torch.zeros(4), wrong, run)


def test_an_export_is_read_back_to_the_bit() -> None:
    run: Any = SimpleNamespace(log_path=Path("log"))
    whole = tiny.llama(dtype=torch.bfloat16)
    export.check_written(whole, tiny.llama(dtype=torch.bfloat16), run)
    export.check_written(whole, tiny.llama(dtype=torch.bfloat16).float(), run)  # read in a wider type
    for seed, poison in ((1, None), (0, float("nan"))):
        read = tiny.llama(seed=seed, dtype=torch.bfloat16)
        if poison is not None:
            read.lm_head.weight.data[0, 0] = whole.lm_head.weight.data[0, 0] = poison
        with pytest.raises(TrainingError, match="are not those that were written, as "):
            export.check_written(whole, read, run)
