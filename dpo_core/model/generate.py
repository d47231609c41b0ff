"""Autoregressive decoding of many prompts together, through the KV cache of any transformers causal LM."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

WORTH_COMPACTING = 8


@dataclass(frozen=True, slots=True)
class Decoding:
    """How to continue prompts.

    ``stop_strings`` are looked for in the text that ``tokenizer`` makes of the new tokens. ``temperature`` 0 is greedy;
    above it, row i draws from its own stream of (``seed``, i), so that neighbours change nothing.
    """

    max_new_tokens: int
    stop_token_ids: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()
    tokenizer: PreTrainedTokenizerBase | None = None
    batch_size: int = 64
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.stop_strings and self.tokenizer is None:
            raise ValueError("stop strings are found in text: give the tokenizer that makes it")


@dataclass(frozen=True, slots=True)
class Completion:
    """New ids, the stop token (or the tokens of the stop string) included.

    ``ended`` is false when ``max_new_tokens`` or the model's context cut it off.
    """

    ids: tuple[int, ...]
    ended: bool


@dataclass(slots=True)
class Row:
    """One prompt on its way; ``limit`` is how many tokens it may get."""

    index: int
    prompt: Sequence[int]
    limit: int
    draw: random.Random = field(default_factory=random.Random)
    ids: list[int] = field(default_factory=list)
    ended: bool = False

    @property
    def finished(self) -> bool:
        """Nothing more may be added."""
        return self.ended or len(self.ids) >= self.limit


def decode(model: PreTrainedModel, prompts: Sequence[Sequence[int]], decoding: Decoding) -> list[Completion]:
    """Continue every prompt; results stand in the prompts' order.

    A prompt gets ``max_new_tokens`` or what the model's context (``max_position_embeddings``) leaves, whichever is
    less: one that fills the context gets an empty completion that has not ended. In float32 a prompt's greedy tokens
    do not depend on the other prompts.
    """
    rows = [
        Row(index, prompt, room(model, prompt, decoding), random.Random(f"{decoding.seed}/{index}"))
        for index, prompt in enumerate(prompts)
    ]
    waiting = sorted((row for row in rows if not row.finished), key=lambda row: len(row.prompt))
    with evaluating(model), torch.no_grad():
        for start in range(0, len(waiting), decoding.batch_size):
            decode_batch(model, waiting[start : start + decoding.batch_size], decoding)
    return [Completion(tuple(row.ids), row.ended) for row in rows]


def room(model: PreTrainedModel, prompt: Sequence[int], decoding: Decoding) -> int:
    """How many tokens may follow a prompt."""
    if not prompt:
        raise ValueError("a prompt needs a token to continue from")
    context = getattr(model.config, "max_position_embeddings", None)
    return decoding.max_new_tokens if context is None else min(decoding.max_new_tokens, context - len(prompt))


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Dropout off inside, and as it was afterwards."""
    training = model.training
    model.train(False)
    try:
        yield
    finally:
        model.train(training)


def decode_batch(model: PreTrainedModel, rows: list[Row], decoding: Decoding) -> None:
    """Fill the rows with tokens, all a step at a time, until each has ended or reached its limit."""
    ids, mask = pad_left([row.prompt for row in rows], model.device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    while True:
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        tokens = choose(output.logits[:, -1].float(), rows, decoding.temperature)
        take(rows, tokens.tolist(), decoding)
        live = [place for place, row in enumerate(rows) if not row.finished]
        if not live:
            return
        # Copying the cache costs about a step's growth of it, so a few finished rows are carried along for free.
        if (len(rows) - len(live)) * WORTH_COMPACTING >= len(rows):
            kept = torch.tensor(live, device=mask.device)
            cache.batch_select_indices(kept)
            rows, tokens, mask, positions = [rows[place] for place in live], tokens[kept], mask[kept], positions[kept]
        ids, positions = tokens[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)


def pad_left(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, (B, T) int64 both, every prompt at the right end; padding is masked, its id arbitrary."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids.to(device), mask.to(device)


def choose(logits: Tensor, rows: Sequence[Row], temperature: float) -> Tensor:
    """The next token of every row, (B,) int64, from float32 logits (B, V): the likeliest, or one draw a row.

    A draw inverts the cumulative distribution at one uniform number of the row's own stream.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    cumulative = torch.softmax(logits / temperature, dim=-1).cumsum(dim=-1)
    uniform = torch.tensor([[row.draw.random()] for row in rows], dtype=logits.dtype, device=logits.device)
    drawn = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    return drawn.squeeze(1).clamp(max=logits.shape[-1] - 1)


def take(rows: Sequence[Row], tokens: Sequence[int], decoding: Decoding) -> None:
    """Give each unfinished row its token, and see whether that ends it."""
    for row, token in zip(rows, tokens, strict=True):
        if not row.finished:
            row.ids.append(token)
            row.ended = token in decoding.stop_token_ids or stopped_by_text(row.ids, decoding)


def stopped_by_text(ids: Sequence[int], decoding: Decoding) -> bool:
    """Whether the text so far holds a stop string that the last token completed.

    A token that makes text makes at least one byte of it: a string of n bytes is in the text of the last n tokens,
    and one more keeps a tokenizer from stripping the space in front.
    """
    if decoding.tokenizer is None or not decoding.stop_strings:
        return False
    longest = max(len(stop.encode()) for stop in decoding.stop_strings)
    text = decoding.tokenizer.decode(list(ids[-longest - 1 :]), clean_up_tokenization_spaces=False)
    return any(stop in text for stop in decoding.stop_strings)
