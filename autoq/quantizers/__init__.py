"""The table of quantizers and range estimators.

CONTRIBUTING.md says how to add one. This module does not import torch; an implementation is imported when a quantizer is built.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from autoq.config.policy import TensorQuant
from autoq.errors import PolicyError, unknown

if TYPE_CHECKING:
    from autoq.quantizers.base import Quantizer
    from autoq.quantizers.range_estimators import Statistics


Kind = Literal["weight", "signed", "unsigned"]
"""Kinds of tensors: weights, which are symmetric, and activations and skips, signed or unsigned."""

KINDS: dict[Kind, str] = {
    "weight": "weights",
    "signed": "signed activations and skips",
    "unsigned": "unsigned activations and skips",
}


def _same(bits: int) -> int:
    return bits


@dataclass(frozen=True)
class QuantizerInfo:
    """A quantizer.

    Attributes:
        location: `module:class` of the implementation.
        learned: Whether its range is trained.
        bits: Supported bit widths.
        source: Paper and equations.
        serves: Kinds of tensors that it supports.
        weight_integers: Maps the bits of a weight to the bits of the integers that represent it. These are more if the
            levels are not evenly spaced around zero.
    """

    location: str
    learned: bool
    bits: range
    source: str
    serves: tuple[Kind, ...] = tuple(KINDS)
    weight_integers: Callable[[int], int] = _same

    def unfit(self, role: str | None, signed: bool) -> str:
        """Why the quantizer does not support a role and signedness; empty if it does. role: None if unknown."""
        wanted: Kind = "weight" if role == "weight" else "signed" if signed else "unsigned"
        enough = {wanted, "weight"} if role is None and signed else {wanted}
        asymmetric_weight = role == "weight" and not signed
        if set(KINDS) <= set(self.serves) or (enough.intersection(self.serves) and not asymmetric_weight):
            return ""
        given = "asymmetric weights" if asymmetric_weight else "signed data" if role is None and signed else KINDS[wanted]
        return f"supports {' and '.join(KINDS[kind] for kind in self.serves)}, not {given}"

    def no_width(self, bits: int, role: str | None, integer_bits: int | None) -> str:
        """Why the quantizer does not support a width on a target with `integer_bits`; empty if it does."""
        first, last = self.bits[0], self.bits[-1]
        if bits not in self.bits:
            return f"supports {first} to {last} bits" if first < last else f"supports {first} bit{'s' * (first > 1)} only"
        if role != "weight" or integer_bits is None or self.weight_integers(bits) <= integer_bits:
            return ""
        most = max((width for width in self.bits if self.weight_integers(width) <= integer_bits), default=0)
        return f"supports weights of up to {most} bits on targets with {integer_bits}-bit integers"


EVERY = range(2, 17)
WEIGHT: tuple[Kind, ...] = ("weight",)
UNSIGNED: tuple[Kind, ...] = ("unsigned",)

QUANTIZERS: dict[str, QuantizerInfo] = {
    "minmax": QuantizerInfo("autoq.quantizers.minmax:MinMax", False, EVERY, "Liu et al. 2021, equations 1-2"),
    "lsq": QuantizerInfo("autoq.quantizers.lsq:LSQ", True, EVERY, "Esser et al. 2020, equations 1-3"),
    "lsq+": QuantizerInfo("autoq.quantizers.lsq_plus:LSQPlus", True, EVERY, "Bhalgat et al. 2020, equations 1-3"),
    "fqsr": QuantizerInfo("autoq.quantizers.fqsr:FQSR", True, EVERY, "Wang et al. 2021, equations 3-4"),
    "pams": QuantizerInfo("autoq.quantizers.pams:PAMS", True, EVERY, "Li et al. 2020, section 3", ("signed", "unsigned")),
    "pact": QuantizerInfo("autoq.quantizers.pact:PACT", True, range(1, 17), "Choi et al. 2018, equations 1-3", UNSIGNED),
    "dorefa": QuantizerInfo(
        "autoq.quantizers.dorefa:dorefa",
        False,
        range(1, 17),
        "Zhou et al. 2016, equations 7-11",
        ("weight", "unsigned"),
        lambda bits: bits + 1,
    ),
    "binary": QuantizerInfo(
        "autoq.quantizers.binary:Binary", False, range(1, 2), "Rastegari et al. 2016, equations 4 and 6", WEIGHT, lambda bits: 2
    ),
    "ternary": QuantizerInfo("autoq.quantizers.ternary:Ternary", False, range(2, 3), "Li et al. 2016, equations 3-6", WEIGHT),
    "inq": QuantizerInfo(
        "autoq.quantizers.inq:INQ",
        False,
        range(2, 6),
        "Zhou et al. 2017, equations 1-4",
        WEIGHT,
        lambda bits: 2 ** (bits - 2) + 1,
    ),
}

CLIPPING_NAMES = ("minmax", "percentile", "mse", "moving_minmax", "entropy", "clipped_relu")


def check(quant: TensorQuant, role: str | None = None, integer_bits: int | None = None) -> None:
    """Check that a format is supported.

    Args:
        quant: The format.
        role: The tensor's role; None if unknown.
        integer_bits: The widest integer that the target executes; None if unknown.

    Raises:
        PolicyError: The quantizer or range estimator is unknown, or does not support the role, signedness or width.
    """
    if quant.is_float:
        return
    if quant.quantizer not in QUANTIZERS:
        raise PolicyError(unknown("quantizer", quant.quantizer, QUANTIZERS))
    if quant.clipping not in CLIPPING_NAMES:
        raise PolicyError(unknown("clipping", quant.clipping, CLIPPING_NAMES))
    info = QUANTIZERS[quant.quantizer]
    reason = info.unfit(role, quant.signed)
    if reason:
        others = ", ".join(name for name, other in QUANTIZERS.items() if not other.unfit(role, quant.signed))
        raise PolicyError(f"quantizer '{quant.quantizer}' {reason}; give one of {others}")
    reason = info.no_width(quant.bits, role, integer_bits)
    if reason:
        raise PolicyError(f"quantizer '{quant.quantizer}' {reason}, given {quant.bits}")


def within(quant: TensorQuant, bits: int) -> TensorQuant:
    """Reduce a weight's width, if necessary, until its integers have at most `bits` bits."""
    integers = QUANTIZERS[quant.quantizer].weight_integers
    return replace(quant, bits=next(width for width in range(quant.bits, 0, -1) if integers(width) <= bits))


def make_quantizer(
    quant: TensorQuant, statistics: Statistics, role: str | None = None, integer_bits: int | None = None
) -> Quantizer:
    """Build the quantizer of a format, with its initial range from the format's range estimator.

    Args:
        quant: The format.
        statistics: Statistics of the tensor.
        role: As in `check`.
        integer_bits: As in `check`.

    Raises:
        PolicyError: As in `check`.
    """
    check(quant, role, integer_bits)
    module, _, name = QUANTIZERS[quant.quantizer].location.partition(":")
    low, high = statistics.range(quant.clipping, quant.bits, quant.signed)
    quantizer: Quantizer = getattr(importlib.import_module(module), name)(quant, low, high)
    return quantizer
