"""Pack integers to their bit widths."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Width(NamedTuple):
    """Storage format of an integer tensor: bits per value, and signedness."""

    bits: int
    signed: bool

    def holds(self, integers: np.ndarray) -> bool:
        """Whether all integers fit the width."""
        low, high = (-(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1) if self.signed else (0, 2**self.bits - 1)
        return bool(integers.size == 0 or (low <= integers.min() and integers.max() <= high))


def pack_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """Pack integers into uint8: `bits` each (two's complement), least significant bit first, last byte padded with zeros."""
    flat = values.reshape(-1).astype(np.int64) & (2**bits - 1)
    return np.packbits(((flat[:, None] >> np.arange(bits)) & 1).astype(np.uint8).reshape(-1), bitorder="little")


def unpack_bits(packed: np.ndarray, bits: int, count: int, signed: bool) -> np.ndarray:
    """Inverse of `pack_bits`: `count` integers, int64."""
    ones = np.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits).astype(np.int64)
    values = ones @ (1 << np.arange(bits))
    return np.where(values >= 2 ** (bits - 1), values - 2**bits, values) if signed else values
