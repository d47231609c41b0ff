"""Memory of a training process as a function of the tokens of its largest microbatch."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from dpo_core.render.token_dataset import CompletionTokens, TokenDataset
from dpo_core.system import host_memory
from dpo_core.system.malloc_tuning import trim
from dpo_core.train.batching.packing import Branches, Layout, branches, build
from dpo_core.train.logps import autocast, causal_model, head_tokens, hidden_states

# A conversation like those that most tokens are in, or its beginning of so many tokens, tells what a token takes.
PROBE_TOKENS = 1024
# What the heap of a CPU process holds for activations beyond their size, between smaller blocks: measured (LAB.md).
SLACK = {"cpu": 1.25, "cuda": 1.0}
# Tokens of a microbatch without gradients, at most and at least, and the bytes that they may take.
MAX_TOKENS, MIN_TOKENS, MAX_BYTES = 8192, 256, {"cpu": 2**30, "cuda": 2**32}
# Gradient and AdamW's two moments of a weight that trains, all in its type.
STATES = 3
# What libraries take when they first compute, and on a CPU the kernels that oneDNN keeps for each new shape (LAB.md).
WORKSPACE = {"cpu": 150_000_000, "cuda": 300_000_000}


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes. ``loaded`` before the first step (weights, the reference, libraries); ``trained`` weights; ``saved`` for a
    checkpoint that is written while training goes on; ``copies`` of weights in the compute type; ``token`` for the
    activations of one; ``layer`` for one in a layer's backward pass; ``logits`` of one, of which ``at_once`` exist;
    ``head`` for the gradient of the output head; ``aside`` for what is done between steps and at the
    end."""

    device: str
    loaded: int
    trained: int
    saved: int
    copies: int
    token: float
    layer: float
    logits: int
    at_once: int
    head: int
    aside: int

    @property
    def certain(self) -> int:
        """Without any activation: weights, gradients and the optimizer's state."""
        return self.loaded + STATES * self.trained

    def peak(self, tokens: int) -> int:
        """The most that the process holds with microbatches of so many tokens."""
        head = self.head + min(self.at_once, tokens) * self.logits
        activations = SLACK[self.device] * tokens * self.token
        step = self.saved + self.copies + activations + max(head, tokens * self.layer)
        return int(self.certain + WORKSPACE[self.device] + max(step, self.aside))


@dataclass(frozen=True)
class Workload:
    """A policy, and the pairs that it is to be trained on.

    ``sides`` of a pair that a microbatch takes: 2, or 1. ``saves``: whether checkpoints are written during training.
    ``sampled``: tokens whose keys and values are in the cache when the policy is sampled. ``evaluated``: whether
    held-out pairs are scored, between steps or at the end. ``exported``: bytes that a weight takes at the end, as it is
    written and as it is read back, together; 0 where the policy is not exported so.
    """

    policy: nn.Module
    rows: TokenDataset
    layout: Layout
    precision: str
    sides: int = 2
    saves: bool = False
    sampled: int = 0
    evaluated: bool = False
    exported: int = 0

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.policy.parameters()).device

    @property
    def config(self) -> Any:
        """The model's sizes."""
        return causal_model(self.policy).config.get_text_config()


def estimate_memory(work: Workload) -> MemoryEstimate:
    """The footprint of a policy as it is loaded now, from its sizes and what two short forward passes keep."""
    token, copies = measure_activations(work)
    loaded = allocated_bytes(work.device)
    layer = token / work.config.num_hidden_layers
    if recomputes_activations(work.policy):  # each layer's input stays, and one layer's activations at a time
        width = causal_model(work.policy).get_input_embeddings().weight.element_size() * work.config.hidden_size
        token, layer = float(work.config.num_hidden_layers * width), 2 * layer
    trained = sum(p.numel() * p.element_size() for p in work.policy.parameters() if p.requires_grad)
    weight = causal_model(work.policy).get_output_embeddings().weight
    computed = 2 if work.precision == "bf16" else weight.element_size()
    cast = weight.element_size() if computed < weight.element_size() else 0
    return MemoryEstimate(
        device=work.device.type,
        loaded=loaded,
        trained=trained,
        saved=STATES * trained if work.saves and work.device.type == "cpu" else 0,
        copies=copies,
        token=token,
        layer=layer,
        logits=computed * int(weight.shape[0]),
        at_once=head_tokens(work.policy),
        head=weight.numel() * (computed + cast) if weight.requires_grad else 0,
        aside=max(kv_cache_bytes(work), validation_bytes(work), export_bytes(work, trained)),
    )


def allocated_bytes(device: torch.device) -> int:
    """Bytes that this process holds on a device, or of host memory."""
    return int(torch.cuda.memory_allocated(device)) if device.type == "cuda" else host_memory.resident()


def kv_cache_bytes(work: Workload) -> int:
    """Bytes of keys and values when the policy is sampled."""
    config = work.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    size = 2 if work.precision == "bf16" else 4
    return int(work.sampled * config.num_hidden_layers * 2 * heads * width * size)


def validation_bytes(work: Workload) -> int:
    """Bytes of a pass over held-out pairs without gradients, 0 where there is none."""
    if not work.evaluated:
        return 0
    model = causal_model(work.policy)
    tokens = tokens_without_gradients(model)
    logits = min(tokens, head_tokens(model)) * int(model.get_output_embeddings().weight.shape[0])
    return tokens * bytes_per_token(model) + logits * (2 if work.precision == "bf16" else 4)


def export_bytes(work: Workload, trained: int) -> int:
    """Bytes that the export takes on a CPU beyond weights, gradients and the optimizer's state, of which it first gives
    the latter two back (``trained``: bytes of weights that train): the model in float32 while adapters are added into
    it, then what is written beside what is read back. A GPU without such room leaves it to host memory."""
    if not work.exported or work.device.type != "cpu":
        return 0
    weights = list(work.policy.parameters())
    model_bytes = sum(p.numel() for p in weights) * max(4, work.exported)
    return max(0, model_bytes - sum(p.numel() * p.element_size() for p in weights) - STATES * trained)


def bytes_per_token(model: nn.Module) -> int:
    """Bytes that a token takes in a layer of a pass without gradients, roughly: some hidden states, and the MLP's."""
    config = causal_model(model).config.get_text_config()
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    return 4 * int(8 * config.hidden_size + 3 * inner)


def tokens_without_gradients(model: nn.Module) -> int:
    """Tokens of a microbatch of which nothing is kept: as many as is good, fewer of a wide model.

    It is no setting and no matter of what is free, so that neither changes what is cached, nor a number that two
    processes of a run measure.
    """
    return max(MIN_TOKENS, min(MAX_TOKENS, MAX_BYTES[next(model.parameters()).device.type] // bytes_per_token(model)))


def measure_activations(work: Workload) -> tuple[float, int]:
    """Bytes that a token's activations take until the backward pass, and those of what is kept however many there are
    (copies of the weights in the compute type): the difference between one conversation and two of it tells."""
    item = probe_conversation(work)
    training = work.policy.training
    work.policy.eval()  # nothing is recomputed
    single, double = (saved_tensor_bytes(work, [item] * count) for count in (1, 2))
    work.policy.train(training)
    if work.device.type == "cpu":
        trim()
    tokens = item.tokens if work.layout == "tree" else item.padded
    return max(1.0, (double - single) / tokens), max(0, 2 * single - double)


def probe_conversation(work: Workload) -> Branches:
    """A pair as long as the one that the middle one of all tokens is in, or its beginning."""
    prompt, sides = work.rows.lengths()
    tokens = prompt + sides.chosen + sides.rejected
    order = np.argsort(tokens, kind="stable")
    middle = np.searchsorted(np.cumsum(tokens[order]), tokens.sum() / 2)
    pair = branches(work.rows[int(order[middle])])
    share = min(1.0, PROBE_TOKENS / pair.tokens)

    def cut(length: int) -> int:
        return max(1, int(length * share))

    completions = tuple(
        CompletionTokens(side.ids[: cut(len(side.ids))], side.mask[: cut(len(side.ids))])
        for side in pair.completions[: work.sides]
    )
    return Branches(pair.prompt[: cut(len(pair.prompt))], completions)


def saved_tensor_bytes(work: Workload, items: list[Branches]) -> int:
    """Bytes that autograd keeps of a forward pass over these conversations, the weights themselves aside."""
    batch = build(work.layout, items, work.device)
    saved = {storage_pointer(p): 0 for p in work.policy.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.setdefault(storage_pointer(tensor), tensor.untyped_storage().nbytes())
        return tensor.detach()  # itself, it would keep what made it, and that it: for ever

    with autocast(work.device, work.precision), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden_states(work.policy, batch)
    return sum(saved.values())


def storage_pointer(tensor: torch.Tensor) -> int:
    """What tells one piece of memory from another."""
    return tensor.untyped_storage().data_ptr()


def recomputes_activations(policy: nn.Module) -> bool:
    """Whether activations are computed again in the backward pass."""
    return any(getattr(module, "gradient_checkpointing", False) for module in causal_model(policy).modules())
