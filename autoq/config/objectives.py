"""The numbers that a search can optimize, with their directions and units.

This table does not import torch. `size` and `latency` are computed in costs/, the qualities in
metrics/.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from autoq.errors import InputError, unknown

Direction = Literal["minimize", "maximize"]


@dataclass(frozen=True)
class ObjectiveInfo:
    """Direction, unit and meaning. slack: how much worse than float the hypervolume's reference point is.

    A factor where `relative`, else added in the objective's own unit. quality: judged by the images. floor: the reference point
    itself, where it does not depend on the float network's value. original: whether it compares with a high-resolution original.
    """

    direction: Direction
    unit: str
    meaning: str
    quality: bool
    slack: float
    relative: bool = False
    perceptual: bool = False
    floor: float | None = None
    original: bool = False


def _cost(unit: str, meaning: str) -> ObjectiveInfo:
    return ObjectiveInfo("minimize", unit, meaning, quality=False, slack=1.01, relative=True)


def _quality(direction: Direction, unit: str, meaning: str, slack: float, **facts: Any) -> ObjectiveInfo:
    return ObjectiveInfo(direction, unit, meaning, quality=True, slack=slack, **facts)


FIDELITY = "fidelity"
FIDELITY_FLOOR = 30.0
"""dB: the reference value of fidelity in the hypervolume, and the least a point needs if a no-reference metric is optimized."""

OBJECTIVES: dict[str, ObjectiveInfo] = {
    "size": _cost("bytes", "packed package: every tensor at its own bit width"),
    "size_runtime": _cost("bytes", "tensors of the target's runtime file"),
    "latency": _cost("ms", "median time of one frame on the target's runtime"),
    "ops": _cost("", "multiplications of a frame x weight bits x feature map bits / 1024"),
    "bops": _cost("", "multiplications of a frame x weight bits x feature map bits"),
    "peak_memory": _cost("bytes", "feature maps held at once at input resolution: trunk, short and long skips"),
    "psnr": _quality("maximize", "dB", "peak signal-to-noise ratio on Y, border = scale", 3.0, original=True),
    "ssim": _quality("maximize", "", "structural similarity on Y, border = scale", 0.1, original=True),
    FIDELITY: _quality("maximize", "dB", "PSNR (RGB) to the float network's output, capped at 100", 0.0, floor=FIDELITY_FLOOR),
    "niqe": _quality("minimize", "", "natural image quality evaluator (no reference)", 3.0, perceptual=True),
    "pi": _quality("minimize", "", "perceptual index: (10 - NRQM + NIQE) / 2", 3.0, perceptual=True),
}


def check_objectives(names: Iterable[str]) -> None:
    """Raise InputError for an unknown name, or fewer than two different names."""
    names = list(names)
    for name in names:
        if name not in OBJECTIVES:
            raise InputError(f"--objectives '{','.join(names)}': {unknown('objective', name, OBJECTIVES)}")
    if len(set(names)) != len(names) or len(names) < 2:
        raise InputError(
            f"--objectives '{','.join(names)}': expected two or more different names, for example --objectives size,latency,psnr"
        )


def reference_value(name: str, value_of_float: float) -> float:
    """One coordinate of the hypervolume's reference point: a little worse than the float network."""
    info = OBJECTIVES[name]
    if info.floor is not None:
        return info.floor
    if info.relative:
        return info.slack * value_of_float
    return value_of_float + (info.slack if info.direction == "minimize" else -info.slack)
