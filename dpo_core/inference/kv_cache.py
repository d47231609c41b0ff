"""KV cache with one slot per sequence, for continuous batching: rows join and leave while the others continue.

transformers' own cache copies all keys and values for every new token, and its batch lasts as long as its slowest row.
Here each row fills a slot from its beginning, live rows occupy the first slots, and a mask hides the unused columns.
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

# Columns that the cache grows by, at least: growing copies all of it.
GROWTH_TOKENS = 128
# Share of the free memory that the cache may take.
MEMORY_SHARE = 0.5
# Rows beyond which a device decodes no faster.
MAX_ROWS = {"cpu": 256, "cuda": 512}
ATTENTION = "dpo_slots"
# Rows of one attention call on a CPU, over the columns of the longest of them. On a GPU a further call costs more than
# the columns that it saves.
ROWS_PER_RANGE = 16


class SlotRange(NamedTuple):
    """Slots ``start`` to ``end`` (excluded), and ``width``: the columns that their longest row fills."""

    start: int
    end: int
    width: int


def slot_ranges(lengths: Tensor) -> list[SlotRange] | None:
    """The live slots in ranges, from the rows' lengths (n,) int64; None on a GPU, where one call is faster."""
    if lengths.device.type != "cpu":
        return None
    counts = lengths.tolist()
    bounds = [(start, min(start + ROWS_PER_RANGE, len(counts))) for start in range(0, len(counts), ROWS_PER_RANGE)]
    return [SlotRange(start, end, max(counts[start:end]) + 1) for start, end in bounds]


def attention_by_range(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' scaled dot-product attention of one query a row, (n, heads, 1, d), a call for each slot range.

    Returns (n, 1, heads, d), and None for the attention weights.
    """
    ranges: list[SlotRange] | None = options.pop("slot_ranges", None)
    if ranges is None or attention_mask is None:
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
        for start, end, width in ranges
    ]
    return torch.cat(outputs), None


AttentionInterface.register(ATTENTION, attention_by_range)


@contextmanager
def range_attention(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the model's layers use :func:`attention_by_range`."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before


class CachePosition:
    """Where the layers write next, shared by all layers.

    ``start``: the first slot to fill in a prefill, None in a decoding step. ``lengths``: tokens in every live slot,
    (n,) int64. ``width``: columns of the longest live slot, this step's token included. ``shift``: in a prefill of
    prompts (B, P) padded on the left, (B, P) int64, the padded column of each slot column.
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

    def __init__(self, position: CachePosition) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.position = position

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate all slots in the values' type: under autocast, rotated keys are float32 but attention is not."""
        self.keys, self.values = (
            value_states.new_zeros(self.position.slots, states.shape[1], self.position.capacity, states.shape[3])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write new keys and values, (n, heads, T, d) each; returns the keys and values to attend to."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        position = self.position
        if position.start is not None:
            for cached, new in ((self.keys, key_states), (self.values, value_states)):
                columns = position.shift[:, None, :, None].expand_as(new)
                slots = slice(position.start, position.start + len(new))
                cached[slots, :, : new.shape[2]] = new.gather(2, columns).to(cached.dtype)
            return key_states, value_states
        count = len(key_states)
        rows = torch.arange(count, device=key_states.device)
        self.keys[rows, :, position.lengths] = key_states[:, :, 0].to(self.keys.dtype)
        self.values[rows, :, position.lengths] = value_states[:, :, 0]
        return self.keys[:count, :, : position.width], self.values[:count, :, : position.width]

    def grow(self) -> None:
        """Extend every slot to the position's capacity."""
        if self.is_initialized:
            added = self.position.capacity - self.keys.shape[2]
            self.keys, self.values = (nn.functional.pad(states, (0, 0, 0, added)) for states in self.tensors())

    def move(self, sources: Tensor, targets: Tensor) -> None:
        """Copy slots ``sources`` onto slots ``targets``, (m,) int64 each."""
        for states in self.tensors():
            states[targets] = states[sources]

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Keys and values."""
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Key length and offset of the mask in a prefill: prompts attend to themselves alone."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """Zero: transformers' masks count no tokens before those of the call."""
        return 0

    def get_max_length(self) -> int:
        """No limit."""
        return -1


class KVCache:
    """Keys and values of a model's live rows, and the model's calls that fill and extend them."""

    def __init__(self, model: PreTrainedModel, slots: int, longest_prompt: int) -> None:
        self.model = model
        self.position = CachePosition(slots, longest_prompt + GROWTH_TOKENS)
        count = len(DynamicCache(config=model.config).layers)
        self.layers = [KVCacheLayer(self.position) for _ in range(count)]
        self.cache = Cache(layers=list(self.layers))
        self.position.lengths = torch.zeros(0, dtype=torch.int64, device=model.device)

    def prefill(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Read prompts into the next slots: ids and mask (B, P) int64, padded on the left.

        Returns the logits after each prompt, (B, V) float32.
        """
        position, (_, width) = self.position, ids.shape
        lengths = mask.sum(1)
        columns = torch.arange(width, device=ids.device)
        position.start, position.shift = (
            len(position.lengths),
            ((width - lengths)[:, None] + columns).clamp(max=width - 1),
        )
        logits = self.forward(ids, (mask.cumsum(1) - 1).clamp(min=0), mask)
        position.start, position.lengths = None, torch.cat([position.lengths, lengths])
        return logits

    def step(self, tokens: Tensor) -> Tensor:
        """Append a token to every live row, (n,) int64; returns the logits after it, (n, V) float32."""
        position = self.position
        position.width = int(position.lengths.max()) + 1
        if position.width > position.capacity:
            position.capacity = position.width + max(GROWTH_TOKENS, position.capacity // 4)
            for layer in self.layers:
                layer.grow()
        visible = torch.arange(position.width, device=tokens.device) <= position.lengths[:, None]
        with range_attention(self.model):
            logits = self.forward(
                tokens[:, None],
                position.lengths[:, None],
                visible[:, None, None],
                slot_ranges=slot_ranges(position.lengths),
            )
        position.lengths = position.lengths + 1
        return logits

    def forward(self, ids: Tensor, positions: Tensor, mask: Tensor, **attention_options: Any) -> Tensor:
        """The model's logits at the last column, (B, V) float32; transformers passes the options to its attention."""
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            **attention_options,
        )
        logits: Tensor = output.logits[:, -1].float()
        return logits

    def keep_rows(self, live: Sequence[int]) -> list[int]:
        """Drop all rows but these; the last rows move into the freed slots. Returns the rows in slot order."""
        order, count = list(live), len(live)
        if count == len(self.position.lengths):
            return order
        gaps = sorted(set(range(count)) - set(order))
        movers = [row for row in order if row >= count]
        if gaps:
            device = self.position.lengths.device
            sources, targets = torch.tensor(movers, device=device), torch.tensor(gaps, device=device)
            for layer in self.layers:
                layer.move(sources, targets)
        moved = dict(zip(gaps, movers, strict=True))
        order = [moved.get(slot, slot) for slot in range(count)]
        self.position.lengths = self.position.lengths[
            torch.tensor(order, dtype=torch.int64, device=self.position.lengths.device)
        ]
        return order


def is_supported(model: PreTrainedModel) -> bool:
    """Whether every layer has full causal attention (no sliding window) that accepts our mask."""
    layers = DynamicCache(config=model.config).layers
    plain = bool(layers) and all(type(layer) is DynamicLayer for layer in layers)
    # transformers sets this flag for models that pass a mask to attention unchanged.
    return plain and model._supports_attention_backend and model.config._attn_implementation == "sdpa"


def max_rows(model: PreTrainedModel, longest: int) -> int:
    """Number of rows of ``longest`` tokens whose keys and values fit into memory, at most MAX_ROWS."""
    config, device = model.config.get_text_config(), model.device
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    bytes_per_row = 2 * config.num_hidden_layers * heads * width * longest * model.dtype.itemsize
    return max(1, min(MAX_ROWS.get(device.type, 64), int(MEMORY_SHARE * free_memory(device) / bytes_per_row)))
