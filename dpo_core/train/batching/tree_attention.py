"""Attention over a tree row: a token sees its own prompt and its own completion up to itself, and nothing else.

transformers' models take an attention function by name, so their code is used as it is. On a GPU FlexAttention does
the work, with a block mask; it has no backward on a CPU, where scaled dot-product attention runs conversation by
conversation. Prefix sharing follows arXiv 2410.20305.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.flex_attention import flex_attention_forward

from dpo_core.train.batching.block_mask import tree_mask
from dpo_core.train.batching.packing import Batch, Span

ON_CPU, ON_GPU = "dpo_tree", "dpo_tree_flex"
# Keys up to which plain matrix products beat the fused kernel in bf16 on a CPU, which spends its time in the backward.
MATMULS_WIN = 1024


@contextmanager
def tree_attention(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the model's layers attend as trees do: for forward and backward passes alike."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = ON_GPU if model.device.type == "cuda" else ON_CPU
    try:
        yield
    finally:
        config._attn_implementation = before


def tree_arguments(model: PreTrainedModel, batch: Batch) -> dict[str, Any]:
    """What the model's forward needs to attend over this tree row."""
    if model.device.type == "cuda":
        return {
            "attention_mask": mask_by_layer_kind(model, tree_mask(model.device).of(batch.spans, batch.ids.shape[1]))
        }
    # A mask of four dimensions is handed on as it is; ours has nothing to say, the spans do.
    nothing = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=model.device)
    return {"attention_mask": nothing, "spans": batch.spans}


def mask_by_layer_kind(model: PreTrainedModel, mask: BlockMask) -> Any:
    """The mask as models want it whose layers are of several kinds: one for each kind."""
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or [])
    return dict.fromkeys(kinds, mask) if len(kinds) > 1 else mask


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """transformers' attention function: (1, heads, T, d) queries, keys and values to (1, T, heads, d)."""
    query, key = query.to(value.dtype), key.to(value.dtype)  # autocast leaves rotated ones in float32
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    spans: tuple[Span, ...] = options["spans"]
    options = {name: options.get(name) for name in ("scaling", "sliding_window", "softcap", "s_aux")}
    lengths = [length for span in spans for length in (span.prompt + span.completions[0], *span.completions[1:])]
    parts = [torch.split(part, lengths, dim=2) for part in (query, key, value)]
    outputs, first = [], 0
    for span in spans:
        count = len(span.completions)
        outputs += attend_conversation(span, [part[first : first + count] for part in parts], options)
        first += count
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def attend_conversation(span: Span, parts: list[tuple[Tensor, ...]], options: dict[str, Any]) -> list[Tensor]:
    """The trunk (prompt and first completion) attends causally; every other completion to the prompt and itself."""
    (trunk_query, *queries), (trunk_key, *keys), (trunk_value, *values) = parts
    outputs = [causal_attention(trunk_query, trunk_key, trunk_value, 0, options)]
    prompt_key, prompt_value = trunk_key[:, :, : span.prompt], trunk_value[:, :, : span.prompt]
    for query, key, value in zip(queries, keys, values, strict=True):
        seen_key, seen_value = torch.cat([prompt_key, key], dim=2), torch.cat([prompt_value, value], dim=2)
        outputs.append(causal_attention(query, seen_key, seen_value, span.prompt, options))
    return outputs


def causal_attention(query: Tensor, key: Tensor, value: Tensor, prompt: int, options: dict[str, Any]) -> Tensor:
    """Causal attention of the last queries of a sequence, ``prompt`` of whose keys come before the first query."""
    window, softcap, scale, sinks = options["sliding_window"], options["softcap"], options["scaling"], options["s_aux"]
    length = key.shape[2]
    narrow = window is not None and window < length
    fused = softcap is None and sinks is None and (query.dtype != torch.bfloat16 or length > MATMULS_WIN)
    if fused and prompt == 0 and not narrow:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
    mask = visible_keys(query.shape[2], prompt, window if narrow else None, query.device)
    if fused:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    bias = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, -torch.inf)
    if softcap is None:
        scores = torch.baddbmm(bias, query[0], key[0].transpose(1, 2), alpha=scale)
    else:
        scores = torch.tanh(query[0] @ key[0].transpose(1, 2) * scale / softcap) * softcap + bias
    if sinks is not None:  # a logit of each head that takes its share of the softmax and has no value (gpt-oss)
        sink = sinks.to(scores.dtype)[:, None, None].expand(-1, scores.shape[1], 1)
        return (torch.cat([scores, sink], dim=-1).softmax(-1)[..., :-1] @ value[0])[None]
    return (scores.softmax(-1) @ value[0])[None]  # a bf16 softmax is computed in float32 and rounded once


def visible_keys(queries: int, prompt: int, window: int | None, device: torch.device) -> Tensor:
    """(queries, prompt + queries) bool: which keys each query sees, within ``window`` positions where there is one."""
    query = torch.arange(prompt, prompt + queries, device=device)[:, None]
    key = torch.arange(prompt + queries, device=device)[None]
    seen = key <= query
    return seen if window is None else seen & (query - key < window)


def attend_flex(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: BlockMask, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """FlexAttention on a GPU; the sizes are those of :func:`attend`, the mask is the tree's block mask."""
    query, key = query.to(value.dtype), key.to(value.dtype)  # in float32 its kernels take several times as long
    output: tuple[Tensor, Tensor | None] = flex_attention_forward(module, query, key, value, attention_mask, **options)
    return output


AttentionInterface.register(ON_CPU, attend)
AttentionInterface.register(ON_GPU, attend_flex)
