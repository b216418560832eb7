"""The quantizers and clipping rules a policy may name.

To add one: write `autoq/quantizers/<name>.py`, add one line to QUANTIZERS, run `pytest tests/contracts`.
This table knows no torch; the implementation is imported when a quantizer is built.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoq.errors import PolicyError, unknown
from autoq.policy import TensorQuant

if TYPE_CHECKING:
    from autoq.quantizers.base import Quantizer
    from autoq.quantizers.clipping import Statistics


@dataclass(frozen=True)
class QuantizerInfo:
    """Facts about a quantizer: where it is, what it learns, which widths it has, and its source."""

    location: str
    learned: bool
    bits: range
    source: str


QUANTIZERS: dict[str, QuantizerInfo] = {
    "minmax": QuantizerInfo("autoq.quantizers.minmax:MinMax", False, range(2, 17), "Liu et al. 2021, equations 1-2"),
    "lsq": QuantizerInfo("autoq.quantizers.lsq:LSQ", True, range(2, 17), "Esser et al. 2020, equations 1-3"),
}

CLIPPING_NAMES = ("minmax", "percentile", "mse")


def check(quant: TensorQuant) -> None:
    """Raise PolicyError if no quantizer or clipping rule of that name, or not at that width."""
    if quant.is_float:
        return
    if quant.quantizer not in QUANTIZERS:
        raise PolicyError(unknown("quantizer", quant.quantizer, QUANTIZERS))
    if quant.clipping not in CLIPPING_NAMES:
        raise PolicyError(unknown("clipping", quant.clipping, CLIPPING_NAMES))
    widths = QUANTIZERS[quant.quantizer].bits
    if quant.bits not in widths:
        raise PolicyError(f"quantizer '{quant.quantizer}' has {widths[0]} to {widths[-1]} bits, given {quant.bits}")


def make_quantizer(quant: TensorQuant, statistics: Statistics) -> Quantizer:
    """Build the quantizer a TensorQuant names, its range set by its clipping rule from `statistics`."""
    check(quant)
    module, _, name = QUANTIZERS[quant.quantizer].location.partition(":")
    low, high = statistics.range(quant.clipping, quant.bits, quant.signed)
    quantizer: Quantizer = getattr(importlib.import_module(module), name)(quant, low, high)
    return quantizer
