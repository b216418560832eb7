"""The networks autoq knows.

To add one: write `autoq/models/<name>.py` (a pure nn.Module), add one entry to MODELS and a
`search_spaces/<name>.yaml`, run `pytest tests/contracts`. This table knows no torch; the network is
imported when it is built.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autoq.errors import InputError, WeightsError, unknown
from autoq.policy import Role

if TYPE_CHECKING:
    from torch import nn

BUNDLED = Path(__file__).parent.parent / "weights"


@dataclass(frozen=True)
class ModelInfo:
    """Facts about a network.

    stages: stage -> the roles it has a site for, in the order of the data. patterns: stage -> module paths.
    perceptual: trained for looks, so quality is judged by PI before PSNR. layouts: functions of
    `models.weights` that recognize published checkpoints. bundled: scale -> file in the package.
    """

    location: str
    scales: tuple[int, ...]
    stages: Mapping[str, tuple[Role, ...]]
    patterns: Mapping[str, tuple[str, ...]]
    perceptual: bool
    layouts: tuple[str, ...]
    bundled: Mapping[int, str]


_SRRESNET_STAGES: dict[str, tuple[Role, ...]] = {
    "feature_extraction": ("weight",),
    "body": ("weight", "activation", "skip"),
    "upsampling": ("weight", "activation"),
    "reconstruction": ("weight", "activation"),
}
_SRRESNET_PATTERNS = {
    "feature_extraction": ("head.*",),
    "body": ("body.*", "fuse.*"),
    "upsampling": ("up.*",),
    "reconstruction": ("tail",),
}
_SRRESNET_LAYOUTS = ("leftthomas_srgan", "own_srresnet")

MODELS: dict[str, ModelInfo] = {
    "srresnet": ModelInfo(
        location="autoq.models.srresnet:SRResNet",
        scales=(2, 4),
        stages=_SRRESNET_STAGES,
        patterns=_SRRESNET_PATTERNS,
        perceptual=False,
        layouts=_SRRESNET_LAYOUTS,
        bundled={4: "srresnet_x4_16block_float16.safetensors"},
    ),
    "srgan": ModelInfo(
        location="autoq.models.srresnet:SRResNet",
        scales=(2, 4),
        stages=_SRRESNET_STAGES,
        patterns=_SRRESNET_PATTERNS,
        perceptual=True,
        layouts=_SRRESNET_LAYOUTS,
        bundled={4: "srgan_x4_16block_float16.safetensors"},
    ),
}


def model_info(name: str) -> ModelInfo:
    """The table's entry. Raises InputError with the nearest name."""
    if name not in MODELS:
        raise InputError(unknown("model", name, MODELS))
    return MODELS[name]


def weights_file(name: str, scale: int, weights: Path | None = None) -> Path:
    """The checkpoint to read: `weights`, else the bundled one.

    Raises InputError for an unknown name or scale, WeightsError where none is bundled.
    """
    info = model_info(name)
    if scale not in info.scales:
        raise InputError(
            f"model '{name}' has no x{scale} (scales: {', '.join(map(str, info.scales))}); type --scale {info.scales[-1]}"
        )
    if weights is None:
        if scale not in info.bundled:
            have = ", ".join(f"x{known}" for known in info.bundled) or "none"
            raise WeightsError(f"no weights for {name} x{scale} are bundled (bundled: {have}); give --weights FILE")
        return BUNDLED / info.bundled[scale]
    return weights


def build_model(name: str, scale: int, weights: Path | None = None) -> nn.Module:
    """A float network with weights, in eval mode: those of `weights`, else the bundled ones.

    Raises InputError for an unknown name or scale, WeightsError where no weights are bundled or they do not fit.
    """
    from autoq.models import weights as checkpoint

    info, file = model_info(name), weights_file(name, scale, weights)
    module, _, factory = info.location.partition(":")
    layouts = [getattr(checkpoint, layout) for layout in info.layouts]
    return checkpoint.load_model(getattr(importlib.import_module(module), factory), {"scale": scale}, file, layouts)
