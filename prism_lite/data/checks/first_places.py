"""Where each key of a file was met first, in 16 to 32 bytes a row: for files larger than memory."""

from __future__ import annotations

import hashlib
from array import array

_START_SIZE = 1 << 12  # slots; always a power of two, at most half of them used


class FirstPlaces:
    """A hash table of 64-bit fingerprints and places.

    Two different keys get the same fingerprint in one of 37 million files of a million rows.
    """

    def __init__(self) -> None:
        self._fingerprints = array("Q", bytes(8 * _START_SIZE))  # 0: the slot is free
        self._places = array("Q", bytes(8 * _START_SIZE))  # index of the prefix, then 40 bits: row
        self._prefixes: list[str] = []
        self._num_used = 0

    def first(self, key: bytes, place: str) -> str:
        """The place of an equal key met before; else `place`, which is kept.

        Args:
            key: any bytes.
            place: "FILE, line 7": a text that ends in a space and a number.
        """
        fingerprint = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") or 1
        slot = self._slot_of(fingerprint)
        if self._fingerprints[slot]:
            prefix, number = divmod(self._places[slot], 1 << 40)
            return f"{self._prefixes[prefix]} {number}"
        prefix, _, number = place.rpartition(" ")
        if not self._prefixes or self._prefixes[-1] != prefix:  # files come one after the other
            self._prefixes.append(prefix)
        self._fingerprints[slot] = fingerprint
        self._places[slot] = (len(self._prefixes) - 1 << 40) + int(number)
        self._num_used += 1
        if 2 * self._num_used > len(self._fingerprints):
            self._grow()
        return place

    def _slot_of(self, fingerprint: int) -> int:
        """The slot that holds the fingerprint, or the free one where it belongs."""
        mask = len(self._fingerprints) - 1
        slot = fingerprint & mask
        while self._fingerprints[slot] not in (0, fingerprint):
            slot = (slot + 1) & mask
        return slot

    def _grow(self) -> None:
        fingerprints, places = self._fingerprints, self._places
        self._fingerprints = array("Q", bytes(16 * len(fingerprints)))
        self._places = array("Q", bytes(16 * len(fingerprints)))
        for fingerprint, place in zip(fingerprints, places, strict=True):
            if fingerprint:
                slot = self._slot_of(fingerprint)
                self._fingerprints[slot], self._places[slot] = fingerprint, place
