"""Autoregressive decoding of many prompts together, with the KV cache, for any transformers causal LM."""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from dpo_core.inference.kv_cache import KVCache, is_supported, max_rows
from dpo_core.inference.sampling import SamplingDistribution, TokenLogps, sample_tokens, token_logps

# A batch drops its finished rows once they are at least 1/8 of it.
COMPACTING_DIVISOR = 8
# Waiting prompts are prefilled once at least 1/4 of the slots is free: a larger prefill is faster per prompt.
PREFILL_DIVISOR = 4
# Prompt tokens of one prefill, padding included, by device type. Enough to keep the device busy; more would only add
# padding, since a long prompt pads all others of its prefill.
PROMPT_TOKENS = {"cpu": 2_048, "cuda": 16_384}


@dataclass(frozen=True, slots=True)
class Decoding:
    """How to complete prompts.

    ``stop_strings`` are searched in the text that ``tokenizer`` decodes from the new tokens. ``temperature`` 0 is
    greedy; above it, each row draws from a random stream of its own, so that a row does not depend on its neighbors.
    ``batch_size`` None: as many rows at a time as fit into memory. ``logprobs``: number of likeliest tokens scored
    beside each new token; None scores no token. ``on_step`` is called after each step, for progress, with the
    unfinished rows' work in units of whole responses.

    Raises ValueError for stop strings without a tokenizer.
    """

    max_new_tokens: int
    stop_token_ids: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()
    tokenizer: PreTrainedTokenizerBase | None = None
    batch_size: int | None = 64
    temperature: float = 0.0
    seed: int = 0
    top_k: int | None = None
    top_p: float | None = None
    logprobs: int | None = None
    on_step: Callable[[float], None] = lambda partial: None

    def __post_init__(self) -> None:
        if self.stop_strings and self.tokenizer is None:
            raise ValueError(f"stop_strings={self.stop_strings} need a tokenizer: they are found in the decoded text")

    @property
    def distribution(self) -> SamplingDistribution:
        """The distribution that tokens are drawn from."""
        return SamplingDistribution(self.temperature, self.top_k, self.top_p)


@dataclass(frozen=True, slots=True)
class DecodedTokens:
    """A completion's token ids, the stop token (or the stop string's tokens) included, and their scores if requested.

    ``ended`` is false when ``max_new_tokens`` or the model's context cut the completion off.
    """

    ids: tuple[int, ...]
    ended: bool
    scores: tuple[TokenLogps, ...] = ()


@dataclass(slots=True)
class DecodingRow:
    """A prompt that is being completed, with at most ``limit`` new tokens."""

    index: int
    prompt: Sequence[int]
    limit: int
    rng: random.Random = field(default_factory=random.Random)
    ids: list[int] = field(default_factory=list)
    ended: bool = False
    scores: list[TokenLogps] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Whether the completion has ended or reached its limit."""
        return self.ended or len(self.ids) >= self.limit

    @property
    def completion(self) -> DecodedTokens:
        """The tokens so far."""
        return DecodedTokens(tuple(self.ids), self.ended, tuple(self.scores))


OnFinished = Callable[[int, DecodedTokens], None]


def decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    streams: Sequence[str] | None = None,
    on_finished: OnFinished = lambda index, completion: None,
) -> list[DecodedTokens]:
    """Complete every prompt; returns the completions in the prompts' order.

    A completion has at most ``max_new_tokens``, and at most the tokens that the model's context
    (``max_position_embeddings``) has room for; a prompt that fills the context gets an empty completion that has not
    ended. In float32 a prompt's greedy tokens do not depend on the other prompts. Random draws depend on the seed and
    the prompt's name in ``streams`` (None: :func:`default_streams`). ``on_finished`` gets the index and completion of
    each prompt as soon as it is finished.

    Raises ValueError for an empty prompt.
    """
    names, longest = streams or default_streams(prompts), context_length(model)
    rows = [
        DecodingRow(index, prompt, token_limit(longest, prompt, decoding), random.Random(f"{decoding.seed}/{name}"))
        for index, (prompt, name) in enumerate(zip(prompts, names, strict=True))
    ]
    waiting = sorted((row for row in rows if not row.finished), key=lambda row: len(row.prompt))
    for row in rows:
        if row.finished:
            on_finished(row.index, row.completion)
    with evaluation_mode(model), torch.no_grad():
        decode_rows = decode_continuously if is_supported(model) else decode_in_batches
        for row in decode_rows(model, waiting, decoding):
            on_finished(row.index, row.completion)
    return [row.completion for row in rows]


def default_streams(prompts: Sequence[Sequence[int]]) -> list[str]:
    """A random stream's name for each prompt: its tokens, and the number of equal prompts before it."""
    counts: Counter[tuple[int, ...]] = Counter()
    names = []
    for prompt in prompts:
        key = tuple(prompt)
        names.append(f"{key}/{counts[key]}")
        counts[key] += 1
    return names


def token_limit(longest: int | None, prompt: Sequence[int], decoding: Decoding) -> int:
    """Most new tokens for a prompt, in a context of ``longest`` tokens (None: no limit); negative for a longer prompt.

    Raises ValueError for an empty prompt.
    """
    if not prompt:
        raise ValueError("a prompt needs a token to continue from")
    return decoding.max_new_tokens if longest is None else min(decoding.max_new_tokens, longest - len(prompt))


def context_length(model: PreTrainedModel) -> int | None:
    """Most tokens that a model can attend to, None where its configuration does not state it."""
    length: int | None = getattr(model.config, "max_position_embeddings", None)
    return length


@contextmanager
def evaluation_mode(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode (no dropout) inside; the model's mode is restored afterwards."""
    training = model.training
    model.train(False)
    try:
        yield
    finally:
        model.train(training)


def concurrent_rows(model: PreTrainedModel, rows: Sequence[DecodingRow], decoding: Decoding) -> int:
    """Number of rows to decode at a time."""
    longest = max((len(row.prompt) + row.limit for row in rows), default=1)
    return min(decoding.batch_size or max_rows(model, longest), max(1, len(rows)))


def decode_continuously(
    model: PreTrainedModel, waiting: list[DecodingRow], decoding: Decoding
) -> Iterator[DecodingRow]:
    """Continuous batching: yields every row as it finishes; waiting rows take free slots, longest prompts first."""
    if not waiting:
        return
    size = concurrent_rows(model, waiting, decoding)
    cache = KVCache(model, size, len(waiting[-1].prompt))
    live: list[DecodingRow] = []
    tokens = torch.zeros(0, dtype=torch.int64, device=model.device)
    filling = False
    while waiting or live:
        free = size - len(live)
        filling = bool(waiting) and free > 0 and (filling or not live or free * PREFILL_DIVISOR >= size)
        if filling:
            new = pop_prefill_rows(waiting, free, model.device.type)
            logits, rows, fresh = (
                cache.prefill(*pad_left([row.prompt for row in new], model.device)),
                [*live, *new],
                new,
            )
        else:
            logits, rows, fresh = cache.step(tokens), live, live
        sampled = append_tokens(fresh, logits, decoding)
        tokens = sampled if fresh is live else torch.cat([tokens, sampled])
        yield from (row for row in fresh if row.finished)
        order = cache.keep_rows([index for index, row in enumerate(rows) if not row.finished])
        if len(order) < len(rows):
            tokens = tokens[torch.tensor(order, dtype=torch.int64, device=tokens.device)]
        live = [rows[index] for index in order]
        decoding.on_step(unfinished_responses(live))


def unfinished_responses(rows: Iterable[DecodingRow]) -> float:
    """The rows' tokens in units of whole responses, as if each unfinished row would reach its limit."""
    return sum(1.0 if row.finished else len(row.ids) / row.limit for row in rows)


def pop_prefill_rows(waiting: list[DecodingRow], free: int, device: str) -> list[DecodingRow]:
    """Remove and return the waiting rows to prefill next: the longest prompts that fit into the free slots."""
    count = max(1, min(free, PROMPT_TOKENS.get(device, PROMPT_TOKENS["cpu"]) // len(waiting[-1].prompt)))
    new, waiting[:] = waiting[-count:], waiting[:-count]
    return new


def decode_in_batches(model: PreTrainedModel, waiting: list[DecodingRow], decoding: Decoding) -> Iterator[DecodingRow]:
    """Static batches over transformers' own cache, for models that :class:`KVCache` does not support."""
    size = concurrent_rows(model, waiting, decoding)
    for start in range(0, len(waiting), size):
        batch = waiting[start : start + size]
        decode_batch(model, batch, decoding)
        yield from batch


def decode_batch(model: PreTrainedModel, rows: list[DecodingRow], decoding: Decoding) -> None:
    """Decode the rows together, a token a step, until each has ended or reached its limit."""
    ids, mask = pad_left([row.prompt for row in rows], model.device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache, batch = DynamicCache(config=model.config), rows
    while True:
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        tokens = append_tokens(rows, output.logits[:, -1].float(), decoding)
        live = [index for index, row in enumerate(rows) if not row.finished]
        decoding.on_step(unfinished_responses(batch))
        if not live:
            return
        # Dropping rows copies the cache, which costs about as much as a step: a few finished rows are cheaper to keep.
        if (len(rows) - len(live)) * COMPACTING_DIVISOR >= len(rows):
            kept = torch.tensor(live, device=mask.device)
            cache.batch_select_indices(kept)
            rows, tokens, mask, positions = [rows[index] for index in live], tokens[kept], mask[kept], positions[kept]
        ids, positions = tokens[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)


def pad_left(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, both (B, T) int64, with padding (id 0, mask 0) on the left."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids.to(device), mask.to(device)


def append_tokens(rows: Sequence[DecodingRow], logits: Tensor, decoding: Decoding) -> Tensor:
    """Sample every row's next token from float32 logits (B, V), and append it to the rows that are unfinished.

    Returns the tokens of all rows, (B,) int64.
    """
    tokens = sample_tokens(logits, [row.rng for row in rows], decoding.distribution)
    scores = None if decoding.logprobs is None else token_logps(logits, tokens, decoding.logprobs)
    for index, (row, token) in enumerate(zip(rows, tokens.tolist(), strict=True)):
        if not row.finished:
            row.ids.append(token)
            row.ended = token in decoding.stop_token_ids or completes_stop_string(row.ids, decoding)
            if scores is not None:
                row.scores.append(scores[index])
    return tokens


def completes_stop_string(ids: Sequence[int], decoding: Decoding) -> bool:
    """Whether the last token completed a stop string.

    A token that decodes to text decodes to at least one byte: a string of n bytes lies in the text of the last n
    tokens. One more token keeps a tokenizer from stripping the space in front.
    """
    if decoding.tokenizer is None or not decoding.stop_strings:
        return False
    longest = max(len(stop.encode()) for stop in decoding.stop_strings)
    text = decoding.tokenizer.decode(list(ids[-longest - 1 :]), clean_up_tokenization_spaces=False)
    return any(stop in text for stop in decoding.stop_strings)
