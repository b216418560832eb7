"""Networks that are in no table: a user's own factory, or a checkpoint that spandrel knows.

`package.module:factory` is imported, from the current folder too, and called (with `scale`, where it takes one).
`FILE.pth` is read without running code, and spandrel finds the architecture by its keys.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.weight_norm import WeightNorm

from autoq.compat import allow_torchvision
from autoq.errors import InputError, WeightsError
from autoq.models.sizes import UNTRACEABLE
from autoq.models.stages import StagePatterns
from autoq.models.weights import check_finite, load_strictly, read_state_dict

PROBE = 24
"""Side, in pixels, of the image that shows what scale a network has."""

OTHER_PROBES = (20, 28, 32, 48, 64, 128)
"""Sides for networks that need multiples of 5, 7, 16 or more, or larger images."""


def build(name: str, scale: int, weights: Path | None, is_file: bool) -> tuple[nn.Module, StagePatterns | None]:
    """The network in eval mode, and the stages of its architecture where they are known.

    Raises InputError when the factory or the architecture cannot be used, or the network is not one of `scale`.
    """
    network, patterns = _from_file(Path(name)) if is_file else (_from_factory(name, scale), None)
    if weights is not None:
        load_strictly(network, read_state_dict(weights), weights, name)
    network.eval()  # in training, spectral norm would take another step
    _fold_weight_norm(network)
    _check_output(network, name, scale)
    return network, patterns


def _fold_weight_norm(network: nn.Module) -> None:
    """Weights as they are computed, instead of their length and direction."""
    for module in network.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
        if any(isinstance(hook, WeightNorm) for hook in module._forward_pre_hooks.values()):
            nn.utils.remove_weight_norm(module)


def _from_factory(name: str, scale: int) -> nn.Module:
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name):
        raise InputError(f"model '{name}': expected package.module:factory, as Python imports it; type --model mynet:make")
    module_name, _, attribute = name.partition(":")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)  # as `python -m` would find it
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(
            f"model '{name}': {error}; type --model package.module:factory, one that Python can import from here"
        ) from error
    except Exception as error:
        raise InputError(f"model '{name}': importing it raised {_brief(error)}; mend {module_name}") from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        raise InputError(
            f"model '{name}': {module_name} has nothing to call named '{attribute}'; type --model {module_name}:FACTORY"
        )
    try:
        takes_scale = "scale" in inspect.signature(factory).parameters
        network = factory(scale=scale) if takes_scale else factory()
    except Exception as error:
        raise InputError(f"model '{name}': calling it raised {_brief(error)}; mend {module_name}") from error
    if not isinstance(network, nn.Module):
        raise InputError(f"model '{name}': expected a torch.nn.Module, it gave a {type(network).__name__}; mend {module_name}")
    return network


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _from_file(path: Path) -> tuple[nn.Module, StagePatterns | None]:
    if importlib.util.find_spec("spandrel") is None:
        raise InputError(
            f"model '{path}': recognizing a checkpoint by itself takes spandrel; pip install 'autoq[spandrel]', or type"
            f" --model NAME --weights {path}"
        )
    if not path.is_file():
        raise InputError(f"model '{path}': no such file; type --model NAME (autoq models lists them), or an existing checkpoint")
    state = read_state_dict(path)
    check_finite(state, path)
    allow_torchvision()
    import spandrel

    try:
        found = spandrel.ModelLoader("cpu").load_from_state_dict(state)
    except Exception as error:
        reason = "spandrel knows no such architecture" if "Unsupported" in type(error).__name__ else _brief(error)
        raise WeightsError(f"model '{path}': {reason}; type --model package.module:factory --weights {path}") from error
    network: nn.Module = found.model
    stages = FAMILIES.get(found.architecture.id)
    return network, stages(network) if stages else None


@torch.no_grad()
def _takes(network: nn.Module, side: int) -> bool:
    """Whether a network runs on an image of a side."""
    try:
        network(torch.zeros(1, 3, side, side))
    except UNTRACEABLE:
        return False
    return True


def _check_output(network: nn.Module, name: str, scale: int) -> None:
    side = PROBE
    try:
        side = next((each for each in (PROBE, *OTHER_PROBES) if _takes(network, each)), PROBE)
        with torch.no_grad():
            output = network(torch.zeros(1, 3, side, side))
    except Exception as error:
        raise InputError(
            f"model '{name}': an RGB image [1, 3, {side}, {side}] raised {_brief(error)}; expected a network of RGB images"
        ) from error
    shape = tuple(output.shape) if isinstance(output, torch.Tensor) else ()
    if len(shape) != 4 or shape[:2] != (1, 3) or shape[2] != shape[3] or shape[2] % side:
        given = list(shape) or type(output).__name__
        raise InputError(f"model '{name}': an image [1, 3, {side}, {side}] gave {given}, expected [1, 3, side, side]")
    if shape[2] != scale * side:
        raise InputError(f"model '{name}': a x{shape[2] // side} network, asked for x{scale}; type --scale {shape[2] // side}")


def _rrdb(network: nn.Module) -> StagePatterns:
    """spandrel's RRDBNet: a sequence of a convolution, the residual trunk, upsampling convolutions and two last ones."""
    layers = [str(number) for number, layer in enumerate(network.model) if isinstance(layer, nn.Conv2d)]  # type: ignore[arg-type]
    first, *middle, before_last, last = (f"model.{number}" for number in layers)
    upsampling = {"upsampling": tuple(middle)} if middle else {}
    return {"feature_extraction": (first,), "body": ("model.1.*",), **upsampling, "reconstruction": (before_last, last)}


def _compact(network: nn.Module) -> StagePatterns:
    """spandrel's SRVGGNetCompact (Real-ESRGAN's small networks): a chain of convolutions and a pixel shuffle."""
    layers = [number for number, layer in enumerate(network.body) if isinstance(layer, nn.Conv2d)]  # type: ignore[arg-type]
    first, *middle, last = (f"body.{number}" for number in layers)
    body = {"body": tuple(middle)} if middle else {}
    return {"feature_extraction": (first,), **body, "reconstruction": (last,)}


FAMILIES = {"ESRGAN": _rrdb, "Compact": _compact}
"""spandrel's architecture -> the stages of a network of it."""
