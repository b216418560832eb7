"""The papers' equations, worked in float64 numpy from the papers alone, and what they publish as gradients.

An equation maps `points` to levels. rows: the tensor the quantizer belongs to, [scales, values]; low, high: its range,
[scales, 1]. Scales are kept to 12 significant bits and are at least 1e-9, as everywhere in autoq.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Case:
    rows: np.ndarray
    low: np.ndarray
    high: np.ndarray
    bits: int
    signed: bool

    @property
    def largest(self) -> np.ndarray:
        """max(|low|, |high|), zero being in every range."""
        return np.maximum(np.maximum(-self.low, self.high), 0)


def kept(scale: np.ndarray) -> np.ndarray:
    """A scale to 12 significant bits, rounded half up."""
    mantissa, exponent = np.frexp(np.maximum(scale, 1e-9))
    return np.ldexp(np.floor(mantissa * 4096 + 0.5) / 4096, exponent)


def affine(case: Case) -> tuple[np.ndarray, np.ndarray, int, int]:
    """(scale, zero point, lowest and highest integer) that cover the range: multi-precision SR, equation 2."""
    low, high = np.minimum(case.low, 0), np.maximum(case.high, 0)
    if case.signed:
        top = 2 ** (case.bits - 1) - 1
        return kept(np.maximum(-low, high) / top), np.zeros_like(low), -top, top
    top = 2**case.bits - 1
    scale = kept((high - low) / top)
    return scale, np.clip(np.round(-low / scale), 0, top), 0, top


def minmax(v: np.ndarray, case: Case) -> np.ndarray:
    scale, zero, bottom, top = affine(case)
    return (np.clip(np.round(v / scale + zero), bottom, top) - zero) * scale


def lsq(v: np.ndarray, case: Case) -> np.ndarray:
    """Equations 1 and 2: round(clip(v / s, -Q_N, Q_P)) s."""
    scale, zero, bottom, top = affine(case)
    return np.round(np.clip(v / scale, bottom - zero, top - zero)) * scale


def lsq_plus(v: np.ndarray, case: Case) -> np.ndarray:
    """round(clip((x - beta) / s, n, p)) s + beta, beta a multiple of s."""
    scale, zero, bottom, top = affine(case)
    beta = -zero * scale
    return np.round(np.clip((v - beta) / scale, bottom, top)) * scale + beta


def fqsr(v: np.ndarray, case: Case) -> np.ndarray:
    """Equation 3 with N = 2^b - 1 for unsigned data and 2^(b-1) - 1 for signed."""
    signed = case.signed or bool((case.low < 0).any())
    steps, least = (2 ** (case.bits - 1) - 1, -1) if signed else (2**case.bits - 1, 0)
    interval = kept((case.largest if signed else np.maximum(case.high, 0)) / steps) * steps
    return np.round(np.clip(v / interval, least, 1) * steps) * interval / steps


def pams(v: np.ndarray, case: Case) -> np.ndarray:
    steps = 2 ** (case.bits - 1) - 1
    scale = kept(case.largest / steps)
    return np.round(np.clip(v, -scale * steps, scale * steps) / scale) * scale


def pact(v: np.ndarray, case: Case) -> np.ndarray:
    """Equations 1 and 2."""
    steps = 2**case.bits - 1
    alpha = kept(np.maximum(case.high, 0) / steps) * steps
    y = 0.5 * (np.abs(v) - np.abs(v - alpha) + alpha)
    return np.round(y * steps / alpha) * alpha / steps


def quantize_k(r: np.ndarray, bits: int) -> np.ndarray:
    """DoReFa-Net, equation 5."""
    return np.round((2**bits - 1) * r) / (2**bits - 1)


def dorefa(v: np.ndarray, case: Case) -> np.ndarray:
    """Equations 9 (weights), 7 (weights of one bit) and 11 (activations, up to the range's end instead of 1)."""
    if not case.signed:
        top = kept(np.maximum(case.high, 0) / (2**case.bits - 1)) * (2**case.bits - 1)
        return quantize_k(np.clip(v / top, 0, 1), case.bits) * top
    if case.bits == 1:
        return binary(v, case)
    steps = 2**case.bits - 1
    magnitude = kept(np.abs(case.rows).max(1, keepdims=True) / steps) * steps
    bent = np.maximum(np.abs(np.tanh(case.rows)).max(1, keepdims=True), 1e-300)
    return magnitude * (2 * quantize_k(np.tanh(v) / (2 * bent) + 0.5, case.bits) - 1)


def binary(v: np.ndarray, case: Case) -> np.ndarray:
    """XNOR-Net, equations 4 and 6."""
    return np.where(v < 0, -1, 1) * kept(np.abs(case.rows).mean(1, keepdims=True))


def ternary(v: np.ndarray, case: Case) -> np.ndarray:
    """Equations 3, 5 and 6."""
    found = []
    for points, row in zip(v.reshape(case.rows.shape), case.rows, strict=True):
        delta = 0.7 * np.abs(row).mean()
        above = np.abs(row)[np.abs(row) > delta]
        alpha = kept(above.mean() if above.size else 0.0)
        found.append(np.where(points > delta, alpha, np.where(points < -delta, -alpha, 0)))
    return np.stack(found)


def inq(v: np.ndarray, case: Case) -> np.ndarray:
    """Equations 1-4: a list of levels, and the border between two of them."""
    found = np.zeros_like(v)
    for row, largest in enumerate(case.largest[:, 0]):
        n1 = int(np.floor(np.log2(4 * max(largest, 1e-9) / 3)))
        n2 = n1 + 1 - 2 ** (case.bits - 1) // 2
        before = 0.0
        for level in [2.0**n for n in range(n2, n1 + 1)]:
            found[row] = np.where(np.abs(v[row]) >= (before + level) / 2, np.sign(v[row]) * level, found[row])
            before = level
    return found


EQUATIONS: dict[str, Callable[[np.ndarray, Case], np.ndarray]] = {
    "minmax": minmax,
    "lsq": lsq,
    "lsq+": lsq_plus,
    "fqsr": fqsr,
    "pams": pams,
    "pact": pact,
    "dorefa": dorefa,
    "binary": binary,
    "ternary": ternary,
    "inq": inq,
}
