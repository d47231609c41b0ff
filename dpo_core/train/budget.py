"""How many tokens of a microbatch fit into memory: ``token_budget=auto``."""

import psutil
import torch
from torch import nn

from dpo_core.render.rendered import Rows
from dpo_core.train.logps import autocast, hidden_states
from dpo_core.train.packing import Layout, branches, build

# The part of what is free now that activations may take: gradients, the optimizer's state and the head need the rest.
SHARE = 0.4
PROBE_PAIRS = 8
LEAST, MOST = 512, 65536
STEP = 256


def find(policy: nn.Module, rows: Rows, layout: Layout, precision: str) -> int:
    """The budget for this model and these pairs on this device: what activations of a few pairs take, scaled up."""
    weights = 3 * sum(p.numel() * p.element_size() for p in policy.parameters() if p.requires_grad)
    room = SHARE * max(0, free_memory(next(policy.parameters()).device) - weights)
    tokens = int(room / bytes_a_token(policy, rows, layout, precision))
    return min(MOST, max(LEAST, tokens // STEP * STEP))


def bytes_a_token(policy: nn.Module, rows: Rows, layout: Layout, precision: str) -> float:
    """Memory that a token's activations take until the backward pass: whatever autograd keeps, but the weights."""
    device = next(policy.parameters()).device
    items = [branches(rows[index]) for index in range(min(PROBE_PAIRS, len(rows)))]
    batch = build(layout, items, device)
    kept = {storage(p): 0 for p in policy.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(storage(tensor), tensor.untyped_storage().nbytes())
        return tensor

    with autocast(device, precision), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden_states(policy, batch)
    return sum(kept.values()) / batch.size


def storage(tensor: torch.Tensor) -> int:
    """What tells one piece of memory from another."""
    return tensor.untyped_storage().data_ptr()


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
