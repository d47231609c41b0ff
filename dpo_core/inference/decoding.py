"""Autoregressive decoding of many prompts together, through the KV cache of any transformers causal LM."""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from dpo_core.inference.kv_cache import KVCache, affordable, fits
from dpo_core.inference.sampling import SamplingDistribution, TokenLogps, choose, score

WORTH_COMPACTING = 8
# Rows wait until this part of the slots is free: prompts are read faster together.
WORTH_ADMITTING = 4
# Prompt tokens that are read at once, padding included: as many as keep the device busy, and no more, since one long
# prompt pads all that are read with it.
PROMPT_TOKENS = {"cpu": 2_048, "cuda": 16_384}


@dataclass(frozen=True, slots=True)
class Decoding:
    """How to continue prompts.

    ``stop_strings`` are looked for in the text that ``tokenizer`` makes of the new tokens. ``temperature`` 0 is greedy;
    above it, each row draws from a stream of its own, so that neighbours change nothing. ``batch_size`` None: as many
    rows at a time as memory has room for. ``logprobs``: how many of the likeliest tokens are scored beside each new
    one; None scores nothing. ``on_step`` is called after each step, for progress, with how many answers those amount to
    that are begun and that ``finished`` has not been told of.
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
            raise ValueError("stop strings are found in text: give the tokenizer that makes it")

    @property
    def shape(self) -> SamplingDistribution:
        """The distribution that tokens are drawn from."""
        return SamplingDistribution(self.temperature, self.top_k, self.top_p)


@dataclass(frozen=True, slots=True)
class DecodedTokens:
    """New ids, the stop token (or the tokens of the stop string) included, and their scores where asked for.

    ``ended`` is false when ``max_new_tokens`` or the model's context cut it off.
    """

    ids: tuple[int, ...]
    ended: bool
    scores: tuple[TokenLogps, ...] = ()


@dataclass(slots=True)
class DecodingRow:
    """One prompt on its way; ``limit`` is how many tokens it may get."""

    index: int
    prompt: Sequence[int]
    limit: int
    draw: random.Random = field(default_factory=random.Random)
    ids: list[int] = field(default_factory=list)
    ended: bool = False
    scores: list[TokenLogps] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Nothing more may be added."""
        return self.ended or len(self.ids) >= self.limit

    @property
    def completion(self) -> DecodedTokens:
        """What there is of it."""
        return DecodedTokens(tuple(self.ids), self.ended, tuple(self.scores))


Finished = Callable[[int, DecodedTokens], None]


def decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    streams: Sequence[str] | None = None,
    finished: Finished = lambda index, completion: None,
) -> list[DecodedTokens]:
    """Continue every prompt; results stand in the prompts' order.

    A prompt gets ``max_new_tokens`` or what the model's context (``max_position_embeddings``) leaves, whichever is
    less: one that fills the context gets an empty completion that has not ended. In float32 a prompt's greedy tokens
    do not depend on the other prompts. A draw depends on the seed and the row's name in ``streams`` (None: its tokens,
    and how often they came before). ``finished`` is told of each completion as soon as it is there.
    """
    names, longest = streams or own_streams(prompts), context(model)
    rows = [
        DecodingRow(index, prompt, room(longest, prompt, decoding), random.Random(f"{decoding.seed}/{name}"))
        for index, (prompt, name) in enumerate(zip(prompts, names, strict=True))
    ]
    waiting = sorted((row for row in rows if not row.finished), key=lambda row: len(row.prompt))
    for row in rows:
        if row.finished:
            finished(row.index, row.completion)
    with evaluating(model), torch.no_grad():
        for done in through_slots(model, waiting, decoding) if fits(model) else in_batches(model, waiting, decoding):
            finished(done.index, done.completion)
    return [row.completion for row in rows]


def own_streams(prompts: Sequence[Sequence[int]]) -> list[str]:
    """A name for each prompt by its tokens, whatever stands beside it; the same prompt again has another."""
    seen: Counter[tuple[int, ...]] = Counter()
    names = []
    for prompt in prompts:
        key = tuple(prompt)
        names.append(f"{key}/{seen[key]}")
        seen[key] += 1
    return names


def room(longest: int | None, prompt: Sequence[int], decoding: Decoding) -> int:
    """How many tokens may follow a prompt in a context of ``longest`` tokens."""
    if not prompt:
        raise ValueError("a prompt needs a token to continue from")
    return decoding.max_new_tokens if longest is None else min(decoding.max_new_tokens, longest - len(prompt))


def context(model: PreTrainedModel) -> int | None:
    """How many tokens a model can attend to at most, None where its configuration does not say."""
    found: int | None = getattr(model.config, "max_position_embeddings", None)
    return found


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Dropout off inside, and as it was afterwards."""
    training = model.training
    model.train(False)
    try:
        yield
    finally:
        model.train(training)


def batch_size(model: PreTrainedModel, rows: Sequence[DecodingRow], decoding: Decoding) -> int:
    """Rows that are decoded at a time."""
    longest = max((len(row.prompt) + row.limit for row in rows), default=1)
    return min(decoding.batch_size or affordable(model, longest), max(1, len(rows)))


def through_slots(model: PreTrainedModel, waiting: list[DecodingRow], decoding: Decoding) -> Iterator[DecodingRow]:
    """Every row as it finishes; one that waits takes the place of one that is done, the longest prompts first."""
    if not waiting:
        return
    size = batch_size(model, waiting, decoding)
    slots = KVCache(model, size, len(waiting[-1].prompt))
    live: list[DecodingRow] = []
    tokens = torch.zeros(0, dtype=torch.int64, device=model.device)
    filling = False
    while waiting or live:
        free = size - len(live)
        filling = bool(waiting) and free > 0 and (filling or not live or free * WORTH_ADMITTING >= size)
        if filling:
            new = together(waiting, free, model.device.type)
            logits, rows, fresh = slots.admit(*pad_left([row.prompt for row in new], model.device)), [*live, *new], new
        else:
            logits, rows, fresh = slots.step(tokens), live, live
        chosen = take(fresh, logits, decoding)
        tokens = chosen if fresh is live else torch.cat([tokens, chosen])
        yield from (row for row in fresh if row.finished)
        order = slots.keep([place for place, row in enumerate(rows) if not row.finished])
        if len(order) < len(rows):
            tokens = tokens[torch.tensor(order, dtype=torch.int64, device=tokens.device)]
        live = [rows[place] for place in order]
        decoding.on_step(partly(live))


def partly(rows: Iterable[DecodingRow]) -> float:
    """How many answers the rows' tokens amount to, were each that is not finished to get as many as it may."""
    return sum(1.0 if row.finished else len(row.ids) / row.limit for row in rows)


def together(waiting: list[DecodingRow], free: int, device: str) -> list[DecodingRow]:
    """Take the longest prompts that wait, as many as are free and as are read at once."""
    count = max(1, min(free, PROMPT_TOKENS.get(device, PROMPT_TOKENS["cpu"]) // len(waiting[-1].prompt)))
    new, waiting[:] = waiting[-count:], waiting[:-count]
    return new


def in_batches(model: PreTrainedModel, waiting: list[DecodingRow], decoding: Decoding) -> Iterator[DecodingRow]:
    """Batch by batch, through transformers' own cache: for models that the slots do not fit."""
    size = batch_size(model, waiting, decoding)
    for start in range(0, len(waiting), size):
        batch = waiting[start : start + size]
        decode_batch(model, batch, decoding)
        yield from batch


def decode_batch(model: PreTrainedModel, rows: list[DecodingRow], decoding: Decoding) -> None:
    """Fill the rows with tokens, all a step at a time, until each has ended or reached its limit."""
    ids, mask = pad_left([row.prompt for row in rows], model.device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache, everyone = DynamicCache(config=model.config), rows
    while True:
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        tokens = take(rows, output.logits[:, -1].float(), decoding)
        live = [place for place, row in enumerate(rows) if not row.finished]
        decoding.on_step(partly(everyone))
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


def take(rows: Sequence[DecodingRow], logits: Tensor, decoding: Decoding) -> Tensor:
    """Give each unfinished row its next token, (B,) int64 of all, and see whether that ends it."""
    tokens = choose(logits, [row.draw for row in rows], decoding.shape)
    scores = None if decoding.logprobs is None else score(logits, tokens, decoding.logprobs)
    for place, (row, token) in enumerate(zip(rows, tokens.tolist(), strict=True)):
        if not row.finished:
            row.ids.append(token)
            row.ended = token in decoding.stop_token_ids or stopped_by_text(row.ids, decoding)
            if scores is not None:
                row.scores.append(scores[place])
    return tokens


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
