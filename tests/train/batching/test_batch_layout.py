"""Which layout a model takes: probed in float32 on real tokens, obeyed where the recipe names it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from dpo_core.errors import RecipeError
from dpo_core.records import ReferenceSet, RenderedSet
from dpo_core.train.batching import tree_attention
from dpo_core.train.batching.batch_layout import attention_signature, choose_layout, layout_of_run, tree_obstacle
from tests import tiny

SHAPE: dict[str, Any] = {
    "vocab_size": tiny.VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
OWN = {"head_dim": 16}
KINDS = {"sliding_window": 32, "layer_types": ["sliding_attention", "full_attention"]}
LATENT = {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "n_shared_experts": 1,
}
FAMILIES = {
    "llama": LlamaConfig(**SHAPE),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE | OWN),
    "mistral": MistralConfig(**SHAPE, sliding_window=32),
    "gemma2": Gemma2Config(**SHAPE | OWN, sliding_window=32),
    "gemma3": Gemma3TextConfig(**SHAPE | OWN | KINDS),
    "phi3": Phi3Config(**SHAPE),
    "deepseek_v3": DeepseekV3Config(**SHAPE | LATENT),
    "gpt_oss": GptOssConfig(**SHAPE | OWN | KINDS, num_local_experts=4, num_experts_per_tok=2),
    "gpt_neox": GPTNeoXConfig(**{name: value for name, value in SHAPE.items() if name != "num_key_value_heads"}),
    "gpt2": GPT2Config(vocab_size=64, n_embd=64, n_layer=2, n_head=4, n_positions=256),
}  # fmt: skip


@pytest.fixture
def rendered(tmp_path: Path) -> RenderedSet:
    tiny.rows(tmp_path, tiny.token_pairs(4))
    return RenderedSet.model_construct(path=tmp_path)


def random(name: str, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[name], dtype=dtype).eval()  # type: ignore[no-untyped-call]
    for parameter_name, value in model.named_parameters():
        if "sinks" in parameter_name:
            torch.nn.init.normal_(value)
    return model


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_takes_the_tree_in_bf16_and_keeps_its_weights(name: str, rendered: RenderedSet) -> None:
    model = random(name, torch.bfloat16)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert choose_layout(model, "auto", rendered) == "tree"
    after = model.state_dict()
    assert all(torch.equal(value, after[key]) and value.dtype == after[key].dtype for key, value in before.items())


def test_logits_as_large_as_a_trained_models_are_no_obstacle(rendered: RenderedSet) -> None:
    """In bf16, tree and padded rows round a log-probability of −30 by tenths of a nat."""
    assert choose_layout(tiny.llama(dtype=torch.bfloat16, spread=1.0), "auto", rendered) == "tree"


@pytest.fixture
def leaking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention in which the second completion sees the first."""

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
        key, value = (part.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for part in (key, value))
        return scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2), None

    tree_attention.AttentionInterface.register("leaking", attend)
    monkeypatch.setattr(tree_attention, "ON_CPU", "leaking")


@pytest.mark.usefixtures("leaking")
def test_attention_that_sees_too_much_is_found_out(rendered: RenderedSet, capsys: pytest.CaptureFixture[str]) -> None:
    assert choose_layout(tiny.llama(dtype=torch.bfloat16), "auto", rendered) == "padded"
    assert "gives other hidden states" in capsys.readouterr().out


@pytest.mark.usefixtures("leaking")
def test_a_tree_that_the_recipe_names_is_obeyed_or_an_error(rendered: RenderedSet) -> None:
    with pytest.raises(RecipeError, match=r"layout=tree cannot be used here: LlamaForCausalLM gives other hidden"):
        choose_layout(tiny.llama(), "tree", rendered)


def test_a_model_without_attention_functions_is_named(rendered: RenderedSet, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.llama()
    monkeypatch.setattr(type(model), "_supports_attention_backend", False)
    assert (
        tree_obstacle(model, tiny.rows(rendered.path, tiny.token_pairs(2)))
        == "LlamaForCausalLM takes no attention function"
    )


def test_what_the_reference_found_is_not_probed_again(rendered: RenderedSet, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.llama()
    monkeypatch.setattr("dpo_core.train.batching.batch_layout.tree_obstacle", lambda *_: "it was probed")
    known = ReferenceSet.model_construct(layouts={attention_signature(model): "tree"})
    assert layout_of_run(model, "auto", rendered, known) == "tree"
    assert layout_of_run(model, "padded", rendered, known) == "padded"
    assert layout_of_run(model, "auto", rendered, ReferenceSet.model_construct(layouts={})) == "padded"
    wider = tiny.llama(hidden_size=64)
    wider.config.sliding_window = 16
    assert layout_of_run(wider, "auto", rendered, known) == "padded"
