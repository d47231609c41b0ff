"""What a step costs in floating-point operations, by two ways of counting, and what the device could do."""

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from dpo_core.render.token_dataset import TokenPair
from dpo_core.train.batching.packing import Batch, Span, branches
from dpo_core.train.logps import causal_model

PROBES = 5
MATMUL_SIDE = {"cpu": 1024, "cuda": 8192}


@dataclass(frozen=True, slots=True)
class StepFlops:
    """Of one step. tokens: true ones, a prompt in each of its two sequences. useful, conventional: FLOP."""

    pairs: int
    tokens: int
    padding_share: float
    useful: float
    conventional: float


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """Sizes of a causal language model. body: parameters in matrices, but for the head's ``head`` = V · D."""

    body: int
    head: int
    parameters: int
    attention_width: int
    layers: int
    adapted: bool

    @classmethod
    def of(cls, model: nn.Module) -> "ModelSizes":
        """A transformers model's, perhaps with adapters."""
        causal = causal_model(model)
        config = causal.config.get_text_config()
        head = causal.get_output_embeddings().weight
        tables = {id(head), id(causal.get_input_embeddings().weight)}
        matrices = [p for p in causal.parameters() if p.ndim == 2 and id(p) not in tables]
        dimension = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            body=sum(p.numel() for p in matrices),
            head=head.numel(),
            parameters=sum(p.numel() for p in causal.parameters()),
            attention_width=dimension * config.num_attention_heads,
            layers=config.num_hidden_layers,
            adapted=not head.requires_grad,
        )

    def cost(self, pairs: Sequence[TokenPair], micros: Sequence[Batch]) -> StepFlops:
        """Of these pairs, computed in these microbatches.

        useful: forward (2 FLOP a weight and token) and backward (4; 2 under LoRA, whose frozen weights have no
        gradient) with each prompt once and the head at trained tokens, and attention over what is attended;
        recomputation does not count. conventional: 6N a token of both full sequences, as others report it.
        """
        items = [branches(pair) for pair in pairs]
        spans = [Span(len(item.prompt), tuple(len(side.ids) for side in item.completions)) for item in items]
        trunk = sum(item.tokens for item in items)
        tokens = sum(pair.tokens for pair in pairs)
        weights = 2 * (self.body * trunk + self.head * sum(pair.trained for pair in pairs))
        attention = 4 * self.attention_width * self.layers * sum(span.attended for span in spans)
        computed = sum(micro.size for micro in micros)
        real = trunk if micros and micros[0].spans else sum(pair.tokens for pair in pairs)
        return StepFlops(
            pairs=len(pairs),
            tokens=tokens,
            padding_share=1 - real / computed,
            useful=weights * (2 if self.adapted else 3) + attention * 3,
            conventional=6.0 * self.parameters * tokens,
        )


def matmul_peak(device: torch.device, precision: str) -> float:
    """FLOP/s that a square matrix product reaches here, the best of a few."""
    side = MATMUL_SIDE[device.type]
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.randn(side, side, device=device).to(kind) for _ in "lr")
    return max(2 * side**3 / time_matmul(left, right) for _ in range(PROBES))


def time_matmul(left: torch.Tensor, right: torch.Tensor) -> float:
    """Seconds of one product."""
    synchronize(left.device)
    started = time.perf_counter()
    left @ right
    synchronize(left.device)
    return time.perf_counter() - started


def synchronize(device: torch.device) -> None:
    """Until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory() -> int:
    """Bytes: the most that the GPU has held, or without one the most that this process has."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
