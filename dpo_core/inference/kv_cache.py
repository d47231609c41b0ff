"""A KV cache of slots, one a row: rows come and go while the others go on, and nothing is copied from step to step.

transformers' own cache is concatenated anew with every token, and its batch ends with its slowest row. Here each row
has the beginning of a slot of its own, the rows that are alive the first slots, and a mask says how much counts.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from dpo_core.system.device import free_memory

# Tokens that a cache grows by, at least: growing copies all of it.
CHUNK = 128
# Of what is free, the part that the cache may take.
SHARE = 0.5
MOST_ROWS = {"cpu": 256, "cuda": 512}
ATTENTION = "dpo_slots"
# Rows that attend together on a CPU, over the width of the longest of them. On a GPU a call costs more than the width.
TOGETHER = 16


class SlotRange(NamedTuple):
    """Slots ``start`` to ``end`` and how many columns the longest of them reaches."""

    start: int
    end: int
    width: int


def parts(lengths: Tensor) -> list[SlotRange] | None:
    """The live slots in parts whose rows attend over what they need; None where one call is better."""
    if lengths.device.type != "cpu":
        return None
    reached = lengths.tolist()
    cuts = [(start, min(start + TOGETHER, len(reached))) for start in range(0, len(reached), TOGETHER)]
    return [SlotRange(start, end, max(reached[start:end]) + 1) for start, end in cuts]


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' scaled dot-product attention of one query a row, (n, heads, 1, d), part by part."""
    slot_parts: list[SlotRange] | None = options.pop("slot_parts", None)
    if slot_parts is None or attention_mask is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    outputs = [
        sdpa_attention_forward(
            module,
            query[start:end],
            key[start:end, :, :width],
            value[start:end, :, :width],
            attention_mask[start:end, ..., :width],
            **options,
        )[0]
        for start, end, width in slot_parts
    ]
    return torch.cat(outputs), None


AttentionInterface.register(ATTENTION, attend)


@contextmanager
def narrowly(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the model's layers attend part by part where they are told parts."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before


class CachePosition:
    """Where the layers write next. ``start`` is the first slot to fill while prompts are read, None for a step.

    ``lengths``: tokens in every live slot, (n,) int64. ``width``: columns that the longest of them reaches, with the
    token of this step. ``shift``: for prompts (B, P) padded on the left, the column of each of their tokens.
    """

    def __init__(self, slots: int, capacity: int) -> None:
        self.slots, self.capacity = slots, capacity
        self.start: int | None = None
        self.shift = torch.empty(0)
        self.lengths = torch.empty(0)
        self.width = 0


class KVCacheLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer's keys and values, (slots, heads, capacity, d), zero where nothing was written."""

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, place: CachePosition) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.place = place

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Room for all slots, in the values' type: autocast leaves rotated keys in float32, and attends in its own."""
        self.keys, self.values = (
            value_states.new_zeros(self.place.slots, part.shape[1], self.place.capacity, part.shape[3])
            for part in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keep what is new, and give what is to be attended to."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        place = self.place
        if place.start is not None:
            for kept, new in ((self.keys, key_states), (self.values, value_states)):
                where = place.shift[:, None, :, None].expand_as(new)
                kept[place.start : place.start + len(new), :, : new.shape[2]] = new.gather(2, where).to(kept.dtype)
            return key_states, value_states
        count = len(key_states)
        rows = torch.arange(count, device=key_states.device)
        self.keys[rows, :, place.lengths] = key_states[:, :, 0].to(self.keys.dtype)
        self.values[rows, :, place.lengths] = value_states[:, :, 0]
        return self.keys[:count, :, : place.width], self.values[:count, :, : place.width]

    def grow(self) -> None:
        """As many columns as the place says."""
        if self.is_initialized:
            added = self.place.capacity - self.keys.shape[2]
            self.keys, self.values = (torch.nn.functional.pad(part, (0, 0, 0, added)) for part in self.parts())

    def move(self, sources: Tensor, targets: Tensor) -> None:
        """Copy slots onto others."""
        for part in self.parts():
            part[targets] = part[sources]

    def parts(self) -> tuple[Tensor, Tensor]:
        """Keys and values."""
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """While prompts are read, they attend to themselves alone."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """What stands before the tokens of this call, as far as masks are concerned."""
        return 0

    def get_max_length(self) -> int:
        """No limit."""
        return -1


class KVCache:
    """The cache of a model's live rows, and the model's calls that fill it and go on from it."""

    def __init__(self, model: PreTrainedModel, slots: int, longest_prompt: int) -> None:
        self.model = model
        self.place = CachePosition(slots, longest_prompt + CHUNK)
        count = len(DynamicCache(config=model.config).layers)
        self.layers = [KVCacheLayer(self.place) for _ in range(count)]
        self.cache = Cache(layers=list(self.layers))
        self.place.lengths = torch.zeros(0, dtype=torch.int64, device=model.device)

    def admit(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Read prompts (B, P), padded on the left, into the next slots; float32 logits (B, V) after each."""
        place, (_, width) = self.place, ids.shape
        lengths = mask.sum(1)
        columns = torch.arange(width, device=ids.device)
        place.start, place.shift = len(place.lengths), ((width - lengths)[:, None] + columns).clamp(max=width - 1)
        logits = self.forward(ids, (mask.cumsum(1) - 1).clamp(min=0), mask)
        place.start, place.lengths = None, torch.cat([place.lengths, lengths])
        return logits

    def step(self, tokens: Tensor) -> Tensor:
        """Append a token (n,) to every live row; float32 logits (n, V) after it."""
        place = self.place
        place.width = int(place.lengths.max()) + 1
        if place.width > place.capacity:
            place.capacity = place.width + max(CHUNK, place.capacity // 4)
            for layer in self.layers:
                layer.grow()
        seen = torch.arange(place.width, device=tokens.device) <= place.lengths[:, None]
        with narrowly(self.model):
            logits = self.forward(
                tokens[:, None], place.lengths[:, None], seen[:, None, None], slot_parts=parts(place.lengths)
            )
        place.lengths = place.lengths + 1
        return logits

    def forward(self, ids: Tensor, positions: Tensor, mask: Tensor, **told: Any) -> Tensor:
        """The model's logits at the last position; what is ``told`` reaches its attention."""
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            **told,
        )
        logits: Tensor = output.logits[:, -1].float()
        return logits

    def keep(self, live: Sequence[int]) -> list[int]:
        """Go on with these rows only, the last in the places of those that end. Returns them as they now stand."""
        order, count = list(live), len(live)
        if count == len(self.place.lengths):
            return order
        gaps = sorted(set(range(count)) - set(order))
        movers = [row for row in order if row >= count]
        if gaps:
            device = self.place.lengths.device
            sources, targets = torch.tensor(movers, device=device), torch.tensor(gaps, device=device)
            for layer in self.layers:
                layer.move(sources, targets)
        taken = dict(zip(gaps, movers, strict=True))
        order = [taken.get(slot, slot) for slot in range(count)]
        self.place.lengths = self.place.lengths[
            torch.tensor(order, dtype=torch.int64, device=self.place.lengths.device)
        ]
        return order


def fits(model: PreTrainedModel) -> bool:
    """Whether every layer attends to all that came before, through attention that takes our mask."""
    layers = DynamicCache(config=model.config).layers
    plain = bool(layers) and all(type(layer) is DynamicLayer for layer in layers)
    # transformers marks with it the models whose attention is handed masks as they are.
    return plain and model._supports_attention_backend and model.config._attn_implementation == "sdpa"


def affordable(model: PreTrainedModel, longest: int) -> int:
    """Rows of ``longest`` tokens whose keys and values fit into memory, within what makes the device faster."""
    config, device = model.config.get_text_config(), model.device
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    bytes_a_row = 2 * config.num_hidden_layers * heads * width * longest * model.dtype.itemsize
    return max(1, min(MOST_ROWS.get(device.type, 64), int(SHARE * free_memory(device) / bytes_a_row)))
