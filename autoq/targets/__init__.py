"""What a result will run on. This table knows no torch; the implementation is imported when it is used.

To add one: write `autoq/targets/<name>.py` with a class that has the methods of `Target`, add one entry to
TARGETS, run `pytest tests/contracts`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from autoq.errors import InputError, unknown

if TYPE_CHECKING:
    import numpy as np


class Runner(Protocol):
    """A loaded network: float32 RGB [1, 3, height, width] in, [1, 3, scale height, scale width] out."""

    def __call__(self, image: np.ndarray) -> np.ndarray: ...


class Target(Protocol):
    """A runtime: loads the bytes of its file and says what it is."""

    def load(self, file: bytes | Path, threads: int) -> Runner: ...

    def version(self) -> str: ...


@dataclass(frozen=True)
class TargetInfo:
    """Facts: the widest integer it executes, whether a sum is fused into the layer before it, the file it loads."""

    location: str
    integer_bits: int
    fused_sums: bool
    file: str
    meaning: str


TARGETS: dict[str, TargetInfo] = {
    "openvino-cpu": TargetInfo(
        location="autoq.targets.openvino_cpu:OpenVINOCPU",
        integer_bits=8,
        fused_sums=True,
        file="onnx",
        meaning="OpenVINO on this processor: int8 executed, narrower widths run as int8 (size-only), wider ones as float32",
    ),
}


def target_info(name: str) -> TargetInfo:
    """The table's entry. Raises InputError with the nearest name."""
    if name not in TARGETS:
        raise InputError(unknown("target", name, TARGETS))
    return TARGETS[name]


def load_target(name: str) -> Target:
    """The target's implementation."""
    module, _, attribute = target_info(name).location.partition(":")
    implementation: Any = getattr(importlib.import_module(module), attribute)
    target: Target = implementation()
    return target
