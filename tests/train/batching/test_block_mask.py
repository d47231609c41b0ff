"""FlexAttention's mask: what it shows, and the blocks that are worked out for it."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask

from dpo_core.train.batching.block_mask import BLOCK, TreeMask, segments, tree_mask, visible_blocks
from dpo_core.train.batching.packing import Span

CPU = torch.device("cpu")


def shown(spans: tuple[Span, ...], length: int) -> torch.Tensor:
    """What the mask says of every pair of places."""
    places = torch.arange(length)
    return tree_mask(CPU).of(spans, length).mask_mod(None, None, places[:, None], places[None])


def test_a_place_sees_its_prompt_and_its_own_completion() -> None:
    spans = (Span(3, (2, 2)), Span(2, (1, 3)))
    seen = shown(spans, 16)
    own = {place: (index, number) for index, number, (a, b) in segments(spans) for place in range(a, b)}
    for query, (conversation, branch) in own.items():
        expected = [key for key in range(query + 1) if own[key][0] == conversation and own[key][1] in (0, branch)]
        assert seen[query].nonzero().flatten().tolist() == expected


def test_attended_pairs_of_tokens_are_what_the_mask_shows() -> None:
    span = Span(3, (2, 4))
    assert span.attended == shown((span,), span.tokens).sum().item()


lengths = st.sampled_from([0, 1, 5, 127, 128, 129, 200, 256, 300])
spans_of = st.lists(st.builds(Span, lengths, st.tuples(lengths, lengths)), min_size=1, max_size=3)


@given(spans_of)
def test_blocks_are_those_that_pytorch_finds(spans: list[Span]) -> None:
    end = sum(span.tokens for span in spans)
    length = max(BLOCK, -(-end // BLOCK) * BLOCK)
    mask = TreeMask(CPU)
    mine = mask.of(tuple(spans), length)
    theirs = create_block_mask(mask.sees, None, None, length, length, device="cpu", BLOCK_SIZE=BLOCK)
    assert torch.equal(mine.to_dense(), theirs.to_dense())
    some, whole = visible_blocks(tuple(spans), length)
    seen = mask.sees(*(torch.zeros(()),) * 2, torch.arange(length)[:, None], torch.arange(length)[None])
    counted = seen.view(length // BLOCK, BLOCK, length // BLOCK, BLOCK).sum((1, 3))
    assert ((counted > 0).numpy() == some).all()
    # A block that two completions of one prompt share, seeing all of a block of it, is taken for one to look into.
    assert (counted[torch.from_numpy(whole)] == BLOCK**2).all()


def test_a_row_beyond_the_tables_gets_longer_ones() -> None:
    mask = TreeMask(CPU)
    mask.conversation = mask.branch = torch.zeros(128, dtype=torch.int32)
    assert mask.of((Span(100, (40, 50)),), 256).shape[-2:] == (256, 256)
    assert len(mask.branch) == 512
