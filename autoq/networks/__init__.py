"""The networks autoq knows.

To add one: write `autoq/networks/<name>.py` (a pure nn.Module), add one entry to MODELS and a
`search_spaces/<name>.yaml`, run `pytest tests/contracts`. This table knows no torch; the network is
imported when it is built.
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
    """A network given from Python: the module, or what makes it."""

BUNDLED = Path(__file__).parent.parent / "weights"


W: tuple[Role, ...] = ("weight",)
WA: tuple[Role, ...] = ("weight", "activation")
WAS: tuple[Role, ...] = ("weight", "activation", "skip")


@dataclass(frozen=True)
class ModelInfo:
    """Facts about a network.

    location: `module:factory` below autoq.networks, called with `scale` and `arguments`. stages: stage -> the roles it has
    a site for, in the order of the data. patterns: stage -> module paths. recipe: how it is trained from scratch.
    perceptual: trained for looks, so quality is judged by PI before PSNR. layouts: functions of `networks.layouts` that
    recognize published checkpoints. bundled: scale -> file in the package.
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
"""The stages of Liu et al. 2021; a network without layers between two pixel shuffles has no `upsampling` of its own."""

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
    layouts=("basicsr_edsr", "authors_edsr", "own_edsr"),
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
    "edsr-full": replace(_EDSR, arguments={"blocks": 32, "features": 256, "scaling": 0.1}),
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
"""How the files end that may stand for a model."""


def is_file(name: str) -> bool:
    """Whether a model's name is a checkpoint."""
    return name.lower().endswith(CHECKPOINTS)


def is_custom(name: str) -> bool:
    """Whether a model is the user's own: `package.module:factory`, a network given from Python, or a checkpoint."""
    return is_file(name) or ":" in name


GIVEN = "object:"
"""How the name of a network begins that was given from Python."""


def is_given(name: str) -> bool:
    """Whether a name stands for a network given from Python, to this process or another."""
    return name.startswith(GIVEN)


def model_info(name: str) -> ModelInfo:
    """The table's entry; of a user's own network, whose stages are not known before it is built, one without facts.

    Raises InputError with the nearest name.
    """
    if is_custom(name):
        return ModelInfo(location=name, scales=(), stages={}, patterns={}, perceptual=is_file(name))
    if name not in MODELS:
        raise InputError(f"{unknown('model', name, MODELS)} Or give package.module:factory, or a {CHECKPOINTS[0]} file")
    return MODELS[name]


def _check_scale(name: str, scale: int) -> None:
    scales = model_info(name).scales
    if scales and scale not in scales:
        raise InputError(f"model '{name}' has no x{scale} (scales: {', '.join(map(str, scales))}); type --scale {scales[-1]}")


def weights_file(name: str, scale: int, weights: Path | None = None) -> Path | None:
    """The checkpoint to read: `weights`, else the bundled one; None for a factory that brings its own.

    Raises InputError for an unknown name or scale, WeightsError where none is bundled.
    """
    info = model_info(name)
    _check_scale(name, scale)
    if weights is not None:
        if is_file(name):
            raise InputError(f"--weights '{weights}': model '{name}' is a checkpoint already; leave --weights out")
        return weights
    if is_custom(name):
        return Path(name) if is_file(name) else None
    if scale not in info.bundled:
        have = ", ".join(f"x{known}" for known in info.bundled) or "none"
        fetch = f", or --weights {REQUEST} to fetch {PUBLISHED[name, scale]}" if (name, scale) in PUBLISHED else ""
        raise WeightsError(f"no weights for {name} x{scale} are bundled (bundled: {have}); give --weights FILE{fetch}")
    return BUNDLED / info.bundled[scale]


def bundled_record(file: str) -> dict[str, Any]:
    """What is known of a bundled checkpoint: network, parameters, PSNR by test set, steps, data, how it was made."""
    record: dict[str, Any] = json.loads(record_path(file).read_text())
    return record


def record_path(file: str) -> Path:
    """The record beside a bundled checkpoint."""
    return BUNDLED / file.replace("_float16.safetensors", ".json")


def fresh_model(name: str, scale: int, **arguments: Any) -> nn.Module:
    """A float network of the table as its constructor leaves it; `arguments` instead of the table's.

    Raises InputError for an unknown name or scale.
    """
    info = model_info(name)
    _check_scale(name, scale)
    return _factory(info)(scale=scale, **{**info.arguments, **arguments})


def parameter_count(name: str, scale: int) -> int:
    """Parameters of a network of the table, batch norm's among them; nothing is allocated."""
    import torch

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in fresh_model(name, scale).parameters())


def _factory(info: ModelInfo) -> Callable[..., nn.Module]:
    module, _, factory = info.location.partition(":")
    found: Callable[..., nn.Module] = getattr(importlib.import_module(f"autoq.networks.{module}"), factory)
    return found


def build_model(name: str, scale: int, weights: Path | None = None) -> nn.Module:
    """A float network with weights, in eval mode: those of `weights`, else the bundled ones.

    Raises InputError for an unknown name or scale, WeightsError where no weights are bundled or they do not fit.
    """
    return staged_model(name, scale, weights)[0]


def staged_model(
    name: str, scale: int, weights: Path | None = None, layers: StagePatterns | None = None
) -> tuple[nn.Module, StagePatterns]:
    """`build_model`, and its stages: `layers` where given, else the table's; none where nobody says them."""
    file = weights_file(name, scale, weights)
    if is_custom(name):
        from autoq.networks import custom

        return custom.build(name, scale, weights, is_file(name)), layers or {}
    from autoq.networks import layouts
    from autoq.networks.weights import load_model

    assert file is not None
    info = model_info(name)
    known = [getattr(layouts, layout) for layout in info.layouts]
    return load_model(_factory(info), {"scale": scale, **info.arguments}, file, known), layers or info.patterns
