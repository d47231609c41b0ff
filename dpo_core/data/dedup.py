"""Which digests were there before: a hash table of 64-bit numbers, at most 32 bytes each and no Python objects."""

from array import array

FEWEST_SLOTS = 1024


class DigestSet:
    """A set of 64-bit digests (0 stands for an empty slot, and is held as 1). Open addressing, at most half full.

    Two of n different values share a digest with a probability of n²/2⁶⁵: 10⁻⁹ for the 160,800 rows of HH.
    """

    def __init__(self) -> None:
        self.count = 0
        self.slots = array("Q", bytes(8 * FEWEST_SLOTS))

    def __len__(self) -> int:
        return self.count

    def __contains__(self, digest: int) -> bool:
        return self.slots[self.slot(digest or 1)] != 0

    def add(self, digest: int) -> bool:
        """Enter a digest; false when it was there."""
        digest = digest or 1
        slot = self.slot(digest)
        if self.slots[slot]:
            return False
        self.slots[slot] = digest
        self.count += 1
        if 2 * self.count > len(self.slots):
            self.grow()
        return True

    def slot(self, digest: int) -> int:
        """Where the digest is, or would be."""
        slots, last = self.slots, len(self.slots) - 1
        slot = digest & last
        while slots[slot] and slots[slot] != digest:
            slot = (slot + 1) & last
        return slot

    def grow(self) -> None:
        """Twice the slots."""
        old = self.slots
        self.slots = array("Q", bytes(16 * len(old)))
        for digest in old:
            if digest:
                self.slots[self.slot(digest)] = digest
