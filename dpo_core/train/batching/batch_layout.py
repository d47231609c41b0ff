"""Layout of microbatches: prefix trees wherever the model's attention can, else padded rows."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dpo_core.errors import RecipeError
from dpo_core.pair import Pair
from dpo_core.records import ReferenceSet, RenderedSet
from dpo_core.render.token_dataset import CompletionTokens, TokenDataset, TokenPair, open_split
from dpo_core.system.device import flex_attention_obstacle
from dpo_core.train.batching.packing import Batch, Layout, branches, build
from dpo_core.train.logps import causal_model, hidden_states

# The probe's pairs, and how many tokens of each one's prompt and completions it keeps.
PROBE_PAIRS, PROMPT_TOKENS, COMPLETION_TOKENS = 2, 48, 24
# Largest difference of a hidden state between the layouts, as a share of its length. Rounding of float32 explains
# some 1e-6 on a CPU and 1e-5 on a GPU; a token that sees what it must not differs by far more.
TOLERANCE = {torch.float32: 5e-4, torch.float64: 1e-8}
# What of a configuration decides how its layers attend.
ATTENTION = ("num_attention_heads", "num_key_value_heads", "head_dim", "sliding_window", "attn_logit_softcapping")


def choose_layout(model: nn.Module, setting: str, rendered: RenderedSet) -> Layout:
    """The layout for a model and these pairs, ``setting`` being the recipe's; a line says why if auto is not a tree.

    Raises RecipeError when the recipe says tree and the model cannot attend over trees.
    """
    if setting == "padded":
        return "padded"
    cause = tree_obstacle(model, open_split(rendered.path, "train"))
    if cause is None:
        return "tree"
    if setting == "tree":
        raise RecipeError(
            f"layout=tree cannot be used here: {cause}.",
            "In a tree a completion sees its own prompt and itself alone, whatever stands beside it.",
            "Set layout=auto or layout=padded: the same values, with more computation.",
        )
    print(f"layout: padded rows, because {cause}", flush=True)
    return "padded"


def layout_of_run(model: nn.Module, setting: str, rendered: RenderedSet, reference: ReferenceSet) -> Layout:
    """The layout, as :func:`choose_layout` says, without a new probe where the reference's stage has made it.

    Every process of a run takes the same one, and one that continues a run the one that it began with.
    """
    stored = reference.layouts.get(attention_signature(model))
    return stored if stored and setting in ("auto", stored) else choose_layout(model, setting, rendered)


def attention_signature(model: nn.Module) -> str:
    """What the answer of a probe holds for: this kind of device, model class and shape of attention."""
    causal = causal_model(model)
    config = causal.config.get_text_config()
    shape = " ".join(f"{name}={getattr(config, name, None)}" for name in ATTENTION)
    return f"{causal.device.type} {type(causal).__name__} {shape}"


def tree_obstacle(model: nn.Module, rows: TokenDataset) -> str | None:
    """Why this model cannot attend over trees, or None when it can.

    Tried on the beginning of some of these pairs, against padded rows: the hidden states of the first layers, computed
    in float32 whatever the weights' type, since in bf16 rounding hides the difference that is looked for.
    """
    causal = causal_model(model)
    name = type(causal).__name__
    if not causal._supports_attention_backend:
        return f"{name} takes no attention function"
    if (cause := flex_attention_obstacle()) is not None:
        return cause
    window = getattr(causal.config.get_text_config(), "sliding_window", None)
    if causal.device.type == "cuda" and window and window < longest_sequence(rows):
        return f"{name} attends within {window} tokens, and pairs are longer"
    items = [branches(shortened_pair(rows[index])) for index in range(min(PROBE_PAIRS, len(rows)))]
    try:
        with only_first_layers(causal):
            tree, padded = (
                probe_hidden_states(causal, build(layout, items, causal.device)) for layout in ("tree", "padded")
            )
    except (TypeError, ValueError, KeyError, RuntimeError, AttributeError) as error:
        return f"{name} refuses them ({str(error).splitlines()[0]})"
    furthest = ((tree - padded).norm(dim=-1) / padded.norm(dim=-1)).max().item()
    return None if furthest < TOLERANCE[tree.dtype] else f"{name} gives other hidden states (by {furthest:.2g} of 1)"


@torch.no_grad()
def probe_hidden_states(causal: Any, batch: Batch) -> Tensor:
    """Hidden states (M, D) of the trained tokens' predictors, in float32 or wider, from a decoder that computes so."""
    embedded = causal.get_input_embeddings()(batch.ids)
    return hidden_states(causal, batch, embedded.to(torch.promote_types(embedded.dtype, torch.float32)))


@contextmanager
def only_first_layers(causal: Any) -> Iterator[None]:
    """Inside, the decoder is its first layers alone, one of each kind among them, in float32 or wider.

    Weights come back as they were, to the bit: bf16 to float32 and back loses nothing.
    """
    decoder = causal.get_decoder()
    name, layers = next((n, part) for n, part in decoder.named_children() if isinstance(part, nn.ModuleList))
    rest = [part for part in decoder.children() if part is not layers and not isinstance(part, nn.Embedding)]
    first = layers[: count_layers_of_every_kind(causal)]
    dtypes = [(p, p.dtype) for part in (first, *rest) for p in part.parameters()]
    setattr(decoder, name, first)
    try:
        for parameter, dtype in dtypes:
            parameter.data = parameter.data.to(torch.promote_types(dtype, torch.float32))
        yield
    finally:
        setattr(decoder, name, layers)
        for parameter, dtype in dtypes:
            parameter.data = parameter.data.to(dtype)


def count_layers_of_every_kind(causal: Any) -> int:
    """How many of the first layers hold one of each kind (full attention, sliding window), two at least."""
    kinds = list(getattr(causal.config.get_text_config(), "layer_types", None) or [])
    return max([2, *(kinds.index(kind) + 1 for kind in set(kinds))])


def shortened_pair(pair: TokenPair) -> TokenPair:
    """The end of a pair's prompt and the beginnings of its completions, of different lengths."""
    sides = (pair.sides.chosen.ids[:COMPLETION_TOKENS], pair.sides.rejected.ids[: COMPLETION_TOKENS // 2])
    chosen, rejected = (CompletionTokens(ids, np.ones(len(ids), dtype=np.bool_)) for ids in sides)
    return TokenPair(pair.prompt[-PROMPT_TOKENS:], Pair(chosen, rejected))


def longest_sequence(rows: TokenDataset) -> int:
    """Tokens of the longest full sequence."""
    prompt, sides = rows.lengths()
    return int((prompt + np.maximum(sides.chosen, sides.rejected)).max(initial=0))
