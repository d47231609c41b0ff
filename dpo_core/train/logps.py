"""Log-probabilities of completions under a causal language model, in float32 whatever the model computes in."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from dpo_core.train.packing import Padded


def completion_logps(model: nn.Module, batch: Padded, precision: str = "fp32") -> Tensor:
    """log p(y_t | y_<t) at trained positions and 0 elsewhere: (B, T − 1), float32 (or the model's float64).

    The output head runs on trained positions only: the full (B, T, V) logits never exist.
    precision: fp32, or bf16 for autocast compute under float32 weights.
    """
    with autocast(batch.ids.device, precision):
        hidden = hidden_states(model, batch)[:, :-1][batch.trained]
        logits = head(model, hidden)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    targets = batch.ids[:, 1:][batch.trained]
    picked = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)
    return picked.new_zeros(batch.trained.shape).masked_scatter(batch.trained, picked)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """bf16 autocast, or nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def hidden_states(model: nn.Module, batch: Padded) -> Tensor:
    """The decoder's last hidden states, (B, T, D)."""
    outputs = plain(model).get_decoder()(input_ids=batch.ids, attention_mask=batch.attention.long(), use_cache=False)
    hidden: Tensor = outputs.last_hidden_state
    return hidden


def head(model: nn.Module, hidden: Tensor) -> Tensor:
    """Logits (N, V) of hidden states (N, D), as the model's own forward makes them."""
    causal = plain(model)
    logits: Tensor = causal.get_output_embeddings()(hidden)
    cap = getattr(causal.config, "final_logit_softcapping", None)
    return cap * torch.tanh(logits / cap) if cap else logits


def plain(model: nn.Module) -> Any:
    """The transformers model inside peft's wrapper; adapters stay in its layers."""
    return getattr(model, "get_base_model", lambda: model)()
