"""The table of built-in networks, and loading of networks with weights.

CONTRIBUTING.md says how to add a network. This module does not import torch; a network is imported when it is built.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoq.config.policy import Role
from autoq.errors import InputError, WeightsError, unknown
from autoq.networks import recipes
from autoq.networks.published import PUBLISHED, REQUEST
from autoq.networks.recipes import Recipe
from autoq.networks.stages import StagePatterns

if TYPE_CHECKING:
    from torch import nn

    Own = nn.Module | Callable[..., nn.Module]
    """A network passed from Python: a module, or a function that creates one."""

BUNDLED = Path(__file__).parent.parent / "weights"


W: tuple[Role, ...] = ("weight",)
WA: tuple[Role, ...] = ("weight", "activation")
WAS: tuple[Role, ...] = ("weight", "activation", "skip")


@dataclass(frozen=True)
class ModelInfo:
    """A network.

    Attributes:
        location: `module:factory` in autoq.networks, called with `scale` and `arguments`.
        scales: Supported upscaling factors.
        stages: Stage -> roles that it has sites for, in the order of the data flow.
        patterns: Stage -> patterns of module paths.
        arguments: Keyword arguments of the factory.
        recipe: How the network is trained from scratch.
        perceptual: Whether it is trained for perceptual quality; PI is then preferred to PSNR.
        layouts: Functions of `networks.layouts` that recognize published checkpoints.
        bundled: Scale -> checkpoint in the package.
    """

    location: str
    scales: tuple[int, ...]
    stages: Mapping[str, tuple[Role, ...]]
    patterns: Mapping[str, tuple[str, ...]]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    recipe: Recipe = recipes.PIXELS
    perceptual: bool = False
    layouts: tuple[str, ...] = ()
    bundled: Mapping[int, str] = field(default_factory=dict)


FE, BODY, UP, REC = "feature_extraction", "body", "upsampling", "reconstruction"
"""The stages of Liu et al. 2021. A network without layers between two pixel shuffles has no `upsampling` stage."""

_SRRESNET = ModelInfo(
    location="srresnet:SRResNet",
    scales=(2, 4),
    stages={FE: W, BODY: WAS, UP: WA, REC: WA},
    patterns={FE: ("head.*",), BODY: ("body.*", "fuse.*"), UP: ("up.*",), REC: ("tail",)},
    layouts=("leftthomas_srgan", "own_srresnet"),
    bundled={4: "srresnet_x4_16block_float16.safetensors"},
)
_ESRGAN = ModelInfo(
    location="esrgan:ESRGAN",
    scales=(4,),
    stages={FE: W, BODY: WAS, UP: WA, REC: WA},
    patterns={FE: ("head",), BODY: ("body.*", "fuse"), UP: ("up1.*", "up2.*"), REC: ("tail.*",)},
    recipe=recipes.ESRGAN,
    perceptual=True,
    layouts=("xinntao_esrgan", "own_esrgan"),
    bundled={4: "esrgan_x4_6block_float16.safetensors"},
)
_EDSR = ModelInfo(
    location="edsr:EDSR",
    scales=(2, 3, 4),
    stages={FE: W, BODY: WAS, UP: WA, REC: WA},
    patterns={FE: ("head",), BODY: ("body.*", "fuse"), UP: ("up.*",), REC: ("tail",)},
    recipe=recipes.EDSR,
    layouts=("basicsr_edsr", "authors_edsr", "own_edsr"),
    bundled={2: "edsr_x2_float16.safetensors"},
)
_ESPCN = ModelInfo(
    location="espcn:ESPCN",
    scales=(2, 3, 4),
    stages={FE: W, BODY: WA, REC: WA},
    patterns={FE: ("*head.*",), BODY: ("*body.*",), REC: ("*tail.*",)},
    recipe=recipes.SMALL,
)
_FSRCNN = ModelInfo(
    location="fsrcnn:FSRCNN",
    scales=(2, 3, 4),
    stages={FE: W, BODY: WA, UP: WA},
    patterns={FE: ("*head.*",), BODY: ("*shrink.*", "*map.*", "*expand.*"), UP: ("*tail",)},
    recipe=recipes.SMALL,
)
_VDSR = ModelInfo(
    location="vdsr:VDSR",
    scales=(2, 3, 4),
    stages={FE: W, BODY: WA, REC: WAS},
    patterns={FE: ("*head.*",), BODY: ("*body.*",), REC: ("*tail",)},
)

MODELS: dict[str, ModelInfo] = {
    "srresnet": _SRRESNET,
    "srgan": replace(_SRRESNET, recipe=recipes.SRGAN, perceptual=True, bundled={4: "srgan_x4_16block_float16.safetensors"}),
    "srresnet-msr": ModelInfo(
        location="msrresnet:MSRResNet",
        scales=(2, 3, 4),
        stages={FE: W, BODY: WAS, UP: WA, REC: WAS},
        patterns={FE: ("head.*",), BODY: ("body.*",), UP: ("up.*",), REC: ("tail.*",)},
        layouts=("basicsr_msrresnet", "own_blocks"),
    ),
    "esrgan": _ESRGAN,
    "esrgan-6": replace(_ESRGAN, arguments={"blocks": 6}, recipe=recipes.SHALLOW_ESRGAN),
    "edsr": _EDSR,
    "edsr-full": replace(_EDSR, arguments={"blocks": 32, "features": 256, "scaling": 0.1}, bundled={}),
    "xlsr": ModelInfo(
        location="xlsr:XLSR",
        scales=(2, 3, 4),
        stages={FE: W, BODY: WAS, REC: WA},
        patterns={FE: ("head.*", "skip"), BODY: ("mix", "body.*"), REC: ("fuse.*", "tail.*")},
        recipe=recipes.XLSR,
        layouts=("cxzhou95_xlsr", "own_blocks"),
        bundled={3: "xlsr_x3_float16.safetensors"},
    ),
    "srcnn": ModelInfo(
        location="srcnn:luma_srcnn",
        scales=(2, 3, 4),
        stages={FE: W, BODY: WA, REC: WAS},
        patterns={FE: ("*head.*",), BODY: ("*body.*",), REC: ("*tail",)},
        recipe=recipes.SMALL,
    ),
    "espcn": replace(_ESPCN, bundled={3: "espcn_x3_float16.safetensors"}),
    "espcn-y": replace(_ESPCN, location="espcn:luma_espcn", stages={FE: W, BODY: WA, REC: WAS}),
    "fsrcnn": replace(_FSRCNN, bundled={3: "fsrcnn_x3_float16.safetensors"}),
    "fsrcnn-y": replace(_FSRCNN, location="fsrcnn:luma_fsrcnn", stages={FE: W, BODY: WA, UP: WAS}),
    "vdsr": _VDSR,
    "vdsr-y": replace(_VDSR, location="vdsr:luma_vdsr"),
    "wdsr": ModelInfo(
        location="wdsr:WDSR",
        scales=(2, 3, 4),
        stages={FE: W, BODY: WAS, REC: WAS},
        patterns={FE: ("head", "skip"), BODY: ("body.*",), REC: ("tail",)},
        layouts=("own_wdsr",),
    ),
    "imdn": ModelInfo(
        location="imdn:IMDN",
        scales=(2, 3, 4),
        stages={FE: W, BODY: WAS, UP: WA},
        patterns={FE: ("head",), BODY: ("body.*", "collect.*", "fuse"), UP: ("up.*",)},
        layouts=("authors_imdn", "own_blocks"),
    ),
}


CHECKPOINTS = (".pth", ".pt", ".ckpt", ".safetensors")
"""Suffixes of checkpoints that can be given as a model."""


def is_file(name: str) -> bool:
    """Whether a model name is a path of a checkpoint."""
    return name.lower().endswith(CHECKPOINTS)


def is_custom(name: str) -> bool:
    """Whether a model is custom: `package.module:factory`, a network passed from Python, or a checkpoint."""
    return is_file(name) or ":" in name


GIVEN = "object:"
"""Prefix of the names of networks passed from Python."""


def is_given(name: str) -> bool:
    """Whether a name refers to a network passed from Python, in this process or another."""
    return name.startswith(GIVEN)


def model_info(name: str) -> ModelInfo:
    """The entry of a network. A custom network has an empty entry, as its stages are unknown until it is built.

    Raises:
        InputError: The name is unknown.
    """
    if is_custom(name):
        return ModelInfo(location=name, scales=(), stages={}, patterns={}, perceptual=is_file(name))
    if name not in MODELS:
        raise InputError(
            f"{unknown('model', name, MODELS)}; for your own network, give package.module:factory or the"
            f" path of a {CHECKPOINTS[0]} file"
        )
    return MODELS[name]


def _check_scale(name: str, scale: int) -> None:
    scales = model_info(name).scales
    if scales and scale not in scales:
        options = " and ".join(map(str, scales))
        raise InputError(f"--scale '{scale}': model '{name}' supports {options}, for example --scale {scales[-1]}")


def weights_file(name: str, scale: int, weights: Path | None = None) -> Path | None:
    """The checkpoint of a network: `weights` if given, otherwise the bundled one; None for a factory, which has its own weights.

    Raises:
        InputError: The name or scale is unknown.
        WeightsError: No weights are given or bundled.
    """
    info = model_info(name)
    _check_scale(name, scale)
    if weights is not None:
        if is_file(name):
            raise InputError(f"--weights '{weights}': model '{name}' is already a checkpoint; leave out --weights")
        return weights
    if is_custom(name):
        return Path(name) if is_file(name) else None
    if scale not in info.bundled:
        others = " and ".join(f"x{factor}" for factor in info.bundled)
        bundled = f"{name} x{scale}, only for {others}" if others else f"{name} (see `autoq models`)"
        download = f", or --weights {REQUEST} to download {PUBLISHED[name, scale]}" if (name, scale) in PUBLISHED else ""
        raise WeightsError(f"no weights are bundled for {bundled}; type --weights FILE{download}")
    return BUNDLED / info.bundled[scale]


def bundled_record(file: str) -> dict[str, Any]:
    """The record of a bundled checkpoint: network, parameters, PSNR by test set, steps, data, training settings."""
    record: dict[str, Any] = json.loads(record_path(file).read_text())
    return record


def record_path(file: str) -> Path:
    """The path of a bundled checkpoint's record."""
    return BUNDLED / file.replace("_float16.safetensors", ".json")


def fresh_model(name: str, scale: int, **arguments: Any) -> nn.Module:
    """A built-in float network with randomly initialized weights.

    Args:
        name: Name of a built-in network.
        scale: Upscaling factor.
        arguments: Override the table's arguments of the constructor.

    Raises:
        InputError: The name or scale is unknown.
    """
    info = model_info(name)
    _check_scale(name, scale)
    return _factory(info)(scale=scale, **{**info.arguments, **arguments})


def parameter_count(name: str, scale: int) -> int:
    """Number of parameters of a built-in network, including batch norm; no memory is allocated."""
    import torch

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in fresh_model(name, scale).parameters())


def _factory(info: ModelInfo) -> Callable[..., nn.Module]:
    module, _, factory = info.location.partition(":")
    constructor: Callable[..., nn.Module] = getattr(importlib.import_module(f"autoq.networks.{module}"), factory)
    return constructor


def build_model(name: str, scale: int, weights: Path | None = None) -> nn.Module:
    """Build a float network with weights, in eval mode.

    Args:
        name: Built-in name, `package.module:factory`, or a checkpoint.
        scale: Upscaling factor.
        weights: Checkpoint. Default: the bundled one.

    Raises:
        InputError: The name or scale is unknown.
        WeightsError: No weights are bundled, or they do not match the network.
    """
    return staged_model(name, scale, weights)[0]


def staged_model(
    name: str, scale: int, weights: Path | None = None, layers: StagePatterns | None = None
) -> tuple[nn.Module, StagePatterns]:
    """`build_model` together with the stage patterns: `layers` if given, otherwise the table's; empty for custom networks."""
    file = weights_file(name, scale, weights)
    if is_custom(name):
        from autoq.networks import custom

        return custom.build(name, scale, weights, is_file(name)), layers or {}
    from autoq.networks import layouts
    from autoq.networks.weights import load_model

    assert file is not None
    info = model_info(name)
    published = [getattr(layouts, layout) for layout in info.layouts]
    return load_model(_factory(info), {"scale": scale, **info.arguments}, file, published), layers or info.patterns
