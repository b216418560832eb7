"""The numbers a search can optimize, with their directions and units.

This table knows no torch. `size` is computed in objectives/size.py, `latency` in objectives/latency.py, the
qualities in objectives/quality.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from autoq.errors import InputError, unknown
from autoq.pareto import Direction


@dataclass(frozen=True)
class ObjectiveInfo:
    """Direction, unit and meaning. slack: how much worse than float the hypervolume's reference point is.

    A quality's slack is added in its own unit; a cost's is a factor.
    """

    direction: Direction
    unit: str
    meaning: str
    quality: bool
    slack: float
    perceptual: bool = False


OBJECTIVES: dict[str, ObjectiveInfo] = {
    "size": ObjectiveInfo("minimize", "bytes", "packed package: every tensor at its own bit width", False, 1.01),
    "size_runtime": ObjectiveInfo("minimize", "bytes", "tensors of the target's runtime file", False, 1.01),
    "latency": ObjectiveInfo("minimize", "ms", "median time of one frame on the target's runtime", False, 1.01),
    "psnr": ObjectiveInfo("maximize", "dB", "peak signal-to-noise ratio on Y, border = scale", True, 3.0),
    "ssim": ObjectiveInfo("maximize", "", "structural similarity on Y, border = scale", True, 0.1),
    "niqe": ObjectiveInfo("minimize", "", "natural image quality evaluator (no reference)", True, 3.0, perceptual=True),
    "pi": ObjectiveInfo("minimize", "", "perceptual index: (10 - NRQM + NIQE) / 2", True, 3.0, perceptual=True),
}

PSNR_TO_FLOAT = "psnr_to_float"
"""A value of every trial, no objective: PSNR (dB, RGB) of the quantized output to the float network's output."""


def check_objectives(names: Iterable[str]) -> None:
    """Raise InputError for a name that is in no table, or a list with fewer than two different names."""
    names = list(names)
    for name in names:
        if name not in OBJECTIVES:
            raise InputError(unknown("objective", name, OBJECTIVES))
    if len(set(names)) != len(names) or len(names) < 2:
        raise InputError(f"objectives '{','.join(names)}': expected two or more different names, for example size,latency,psnr")


def reference_value(name: str, value_of_float: float) -> float:
    """One coordinate of the hypervolume's reference point: a little worse than the float network."""
    info = OBJECTIVES[name]
    if not info.quality:
        return info.slack * value_of_float
    return value_of_float + (info.slack if info.direction == "minimize" else -info.slack)
