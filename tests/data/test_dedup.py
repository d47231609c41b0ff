"""The set of digests, against Python's own."""

import random

from hypothesis import given
from hypothesis import strategies as st

from dpo_core.data.acquire import Smallest
from dpo_core.data.dedup import DigestSet

DIGESTS = st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 5) | st.integers(0, 9).map(lambda n: n << 60))


@given(DIGESTS)
def test_it_holds_what_a_set_holds(digests: list[int]) -> None:
    seen, known = DigestSet(), set[int]()
    for digest in digests:
        held = digest or 1
        assert seen.add(digest) == (held not in known)
        known.add(held)
        assert digest in seen
    assert len(seen) == len(known)


def test_it_grows_and_stays_compact() -> None:
    rng = random.Random(0)
    digests = [rng.getrandbits(64) for _ in range(20_000)]
    seen = DigestSet()
    assert all(seen.add(digest) for digest in digests)
    assert not any(seen.add(digest) for digest in digests)
    assert not any(rng.getrandbits(64) in seen for _ in range(1000))
    assert len(seen.slots) * seen.slots.itemsize <= 32 * len(digests)


@given(st.lists(st.integers(0, 30)), st.integers(1, 10), st.integers(0, 12))
def test_the_smallest_keys_are_those_of_sorting_all(keys: list[int], most: int, wanted: int) -> None:
    smallest = Smallest(most)
    for key in keys:
        smallest.note(key)
    expected: dict[int, int] = {}
    for key in sorted(set(keys)):
        if sum(expected.values()) >= min(wanted, most):
            break
        expected[key] = keys.count(key)
    assert smallest.reaching(min(wanted, most)) == expected
