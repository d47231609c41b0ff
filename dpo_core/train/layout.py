"""Which layout a model's microbatches take: the tree wherever its attention can, else padded rows."""

from itertools import pairwise

import numpy as np
import torch
from torch import nn

from dpo_core.pair import Pair
from dpo_core.records import RenderedSet
from dpo_core.render.rendered import Completion, Rows, TokenPair, open_split
from dpo_core.train.logps import completion_logps, plain
from dpo_core.train.packing import Layout, branches, build

PROBE_LENGTHS = (24, 12, 9)
# Rounding differs between the layouts, in nats a token; a token that sees what it must not differs by more.
NEARNESS = {torch.float32: 2e-3, torch.float64: 1e-6, torch.bfloat16: 0.25}


def choose(model: nn.Module, wanted: str, rendered: RenderedSet) -> Layout:
    """The layout for a model and these pairs, ``wanted`` being the recipe's; a line says why if it is not a tree."""
    if wanted == "padded":
        return "padded"
    cause = obstacle(model, open_split(rendered.path, "train"))
    if cause is None:
        return "tree"
    print(f"layout: padded rows, because {cause}", flush=True)
    return "padded"


def obstacle(model: nn.Module, rows: Rows) -> str | None:
    """Why this model cannot attend over trees, or None when it can: tried on a pair, against padded rows."""
    causal = plain(model)
    name = type(causal).__name__
    if not causal._supports_attention_backend:
        return f"{name} takes no attention function"
    window = getattr(causal.config.get_text_config(), "sliding_window", None)
    if causal.device.type == "cuda" and window and window < longest(rows):
        return f"{name} attends within {window} tokens, and pairs are longer"
    try:
        told = [completion_logps(model, build(layout, [branches(probe(causal))], causal.device)) for layout in LAYOUTS]
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        return f"{name} refuses them ({str(error).splitlines()[0]})"
    furthest = max((one - other).abs().max().item() for one, other in pairwise(told))
    return None if furthest < NEARNESS[causal.dtype] else f"{name} gives other values in them (by {furthest:.2g} nats)"


LAYOUTS: tuple[Layout, Layout] = ("tree", "padded")


def probe(causal: nn.Module) -> TokenPair:
    """A pair of arbitrary tokens that the model knows."""
    vocabulary = min(1000, causal.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
    prompt, chosen, rejected = (
        (np.arange(length) * 7 + length).astype(np.int32) % vocabulary for length in PROBE_LENGTHS
    )
    sides = Pair(chosen, rejected).map(lambda ids: Completion(ids, np.ones(len(ids), dtype=np.bool_)))
    return TokenPair(prompt, sides)


def longest(rows: Rows) -> int:
    """Tokens of the longest full sequence."""
    prompt, sides = rows.lengths()
    return int((prompt + np.maximum(sides.chosen, sides.rejected)).max(initial=0))
