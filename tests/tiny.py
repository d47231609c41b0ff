"""Tiny models and token pairs, made here from a seed."""

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from dpo_core.pair import Pair
from dpo_core.render.token_dataset import CompletionTokens, TokenDataset, TokenPair, open_split, write_split
from dpo_core.train.batching.packing import Layout
from dpo_core.train.reference import CachedReference, open_references, score_pairs

VOCABULARY = 64


def llama(
    seed: int = 0, dtype: torch.dtype = torch.float32, hidden_size: int = 32, spread: float = 0.02
) -> LlamaForCausalLM:
    """A random two-layer Llama; weights of a larger ``spread`` make the best token best by far."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden_size,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=spread,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


def directory(path: Path, seed: int = 0, hidden_size: int = 32, spread: float = 0.02) -> Path:
    """A tiny Llama as a model directory, with a tokenizer of as many words."""
    llama(seed, hidden_size=hidden_size, spread=spread).save_pretrained(path)
    words = Tokenizer(WordLevel({str(number): number for number in range(VOCABULARY)}, unk_token="0"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="0").save_pretrained(path)
    return path


def token_pairs(count: int, seed: int = 0) -> list[TokenPair]:
    """Random pairs of uneven lengths."""
    rng = np.random.default_rng(seed)

    def ids(least: int, most: int) -> np.ndarray:
        return rng.integers(3, VOCABULARY, rng.integers(least, most)).astype(np.int32)

    def completion() -> CompletionTokens:
        tokens = ids(1, 20)
        return CompletionTokens(tokens, np.ones(len(tokens), dtype=np.bool_))

    return [TokenPair(ids(2, 30), Pair(completion(), completion())) for _ in range(count)]


def rows(path: Path, pairs: list[TokenPair]) -> TokenDataset:
    """The pairs as a mapped split."""
    write_split(path / "train.arrow", pairs)
    return open_split(path, "train")


def references(
    path: Path, model: PreTrainedModel, split: TokenDataset, layout: Layout = "tree", precision: str = "fp32"
) -> CachedReference:
    """The model's own scores of every pair, written and read as the stage does."""
    tensors = score_pairs(model, split, list(range(len(split))), layout, precision)
    save_file(tensors, path / "train.safetensors")
    return open_references(path, "train")
