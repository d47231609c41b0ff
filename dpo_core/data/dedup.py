"""Hash set of 64-bit digests for finding duplicates: at most 32 bytes per digest, no Python objects."""

from array import array

INITIAL_SLOTS = 1024


class DigestSet:
    """A set of 64-bit digests (0 marks an empty slot, so digest 0 is stored as 1). Open addressing, at most half full.

    Two of n different values share a digest with a probability of n²/2⁶⁵: 10⁻⁹ for the 160,800 rows of HH.
    """

    def __init__(self) -> None:
        self.count = 0
        self.slots = array("Q", bytes(8 * INITIAL_SLOTS))

    def __len__(self) -> int:
        return self.count

    def __contains__(self, digest: int) -> bool:
        return self.slots[self.find_slot(digest or 1)] != 0

    def add(self, digest: int) -> bool:
        """Add a digest. Returns False when it is in the set already."""
        digest = digest or 1
        slot = self.find_slot(digest)
        if self.slots[slot]:
            return False
        self.slots[slot] = digest
        self.count += 1
        if 2 * self.count > len(self.slots):
            self.grow()
        return True

    def find_slot(self, digest: int) -> int:
        """Index of the slot that contains the digest, or of the empty slot for it."""
        slots, last = self.slots, len(self.slots) - 1
        slot = digest & last
        while slots[slot] and slots[slot] != digest:
            slot = (slot + 1) & last
        return slot

    def grow(self) -> None:
        """Double the number of slots."""
        old = self.slots
        self.slots = array("Q", bytes(16 * len(old)))
        for digest in old:
            if digest:
                self.slots[self.find_slot(digest)] = digest
