"""DigestSet and SmallestKeys, compared with Python's set and sorting."""

import random

from hypothesis import given
from hypothesis import strategies as st

from dpo_core.data.acquire import SmallestKeys
from dpo_core.data.dedup import DigestSet

DIGESTS = st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 5) | st.integers(0, 9).map(lambda n: n << 60))


@given(DIGESTS)
def test_a_digest_set_has_the_same_elements_as_a_set(digests: list[int]) -> None:
    seen, expected = DigestSet(), set[int]()
    for digest in digests:
        stored = digest or 1
        assert seen.add(digest) == (stored not in expected)
        expected.add(stored)
        assert digest in seen
    assert len(seen) == len(expected)


def test_it_grows_and_stays_compact() -> None:
    rng = random.Random(0)
    digests = [rng.getrandbits(64) for _ in range(20_000)]
    seen = DigestSet()
    assert all(seen.add(digest) for digest in digests)
    assert not any(seen.add(digest) for digest in digests)
    assert not any(rng.getrandbits(64) in seen for _ in range(1000))
    assert len(seen.slots) * seen.slots.itemsize <= 32 * len(digests)


@given(st.lists(st.integers(0, 30)), st.integers(1, 10), st.integers(0, 12))
def test_the_smallest_keys_are_those_of_sorting_all(keys: list[int], max_count: int, pairs: int) -> None:
    smallest = SmallestKeys(max_count)
    for key in keys:
        smallest.add(key)
    expected: dict[int, int] = {}
    for key in sorted(set(keys)):
        if sum(expected.values()) >= min(pairs, max_count):
            break
        expected[key] = keys.count(key)
    assert smallest.covering(min(pairs, max_count)) == expected
