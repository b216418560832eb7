"""Networks that are in no table: a user's own factory or module, or a checkpoint that spandrel knows.

`package.module:factory` is imported, from the current folder too, and called (with `scale`, where it takes one);
`FILE.py:factory` likewise. `FILE.pth` is read without running code, and spandrel finds the architecture by its keys.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from autoq.errors import InputError, WeightsError
from autoq.networks import is_given
from autoq.networks.given import given
from autoq.networks.prefixes import StateDict, bare_keys, parts
from autoq.networks.weights import check_finite, load_own, read_state_dict
from autoq.networks.wrappers import bare, brief, fold
from autoq.system.compat import allow_torchvision, guest_code

PROBES = (24, 20, 28, 32, 48, 64, 128)
"""Sides, in pixels, of the images that show what scale a network has, the next where one does not suit it."""

SCALE_NAMES = ("scale", "upscale", "upscale_factor", "scale_factor", "upscaling")
"""What factories call the scale. `scale` is always given, another name where the factory does not work without."""

DEFAULT_SCALE = 4

TRAINER_PREFIXES = (
    "model.",
    "net.",
    "network.",
    "generator.",
    "net_g.",
    "netG.",
    "G.",
    "ema.",
    "ema_model.",
    "model_ema.",
    "net_g_ema.",
)
"""Where trainers keep the network in a checkpoint, for architectures whose own keys are not known yet."""


def build(name: str, scale: int | None, weights: Path | None, is_file: bool) -> nn.Module:
    """The network in eval mode. scale: None for its own.

    Raises InputError when the factory or the architecture cannot be used, or the network is not one of `scale`.
    """
    with guest_code():
        network = _from_file(Path(name)) if is_file else _from_factory(name, scale, weights)
        fold(network)
        network.requires_grad_(False)
        found = _scale(network, name)
    if scale not in (None, found):
        raise InputError(f"model '{name}': a x{found} network, asked for x{scale}; type --scale {found}")
    return network


def own_scale(name: str, is_file: bool) -> int:
    """The scale of a network that nobody says one for, found by an image."""
    with guest_code():
        return _scale(_from_file(Path(name)) if is_file else _made(_factory(name), name, None), name)


# ---------------------------------------------------------------- from Python


def _from_factory(name: str, scale: int | None, weights: Path | None) -> nn.Module:
    factory = _factory(name)
    network = _made(factory, name, scale)
    if weights is not None:
        try:
            load_own(network, weights, name)
        except WeightsError as misfit:  # unless its weights are re-parametrized, and the checkpoint's are not
            fold(network)
            try:
                load_own(network, weights, name)
            except WeightsError:
                raise misfit from None
    elif not isinstance(factory, nn.Module):
        _check_repeats(network, _made(factory, name, scale), name)
    return network


def _factory(name: str) -> Any:
    """What a name stands for: a module, or something to call."""
    if is_given(name):
        return given(name)
    if not re.fullmatch(r"([A-Za-z_][\w.]*|.*\.py):[A-Za-z_][\w.]*", name):
        raise InputError(f"model '{name}': expected package.module:factory, as Python imports it; type --model mynet:make")
    where, _, attribute = name.rpartition(":")
    module = _imported(where, name)
    try:
        factory = functools.reduce(getattr, attribute.split("."), module)
    except AttributeError:
        factory = None
    if not callable(factory):
        raise InputError(f"model '{name}': {where} has nothing to call named '{attribute}'; type --model {where}:FACTORY")
    return factory


def _imported(where: str, name: str) -> ModuleType:
    """A module by its name or its file, imported as `python -m` and `python FILE` would. Raises InputError."""
    path = Path(where).resolve() if where.endswith(".py") else None
    folder = str(Path.cwd() if path is None else path.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(where) if path is None else _from_path(path)
    except ImportError as error:
        raise InputError(
            f"model '{name}': {error}; type --model package.module:factory, one that Python can import from here"
        ) from error
    except FileNotFoundError as error:
        if path is None or path.is_file():
            raise InputError(f"model '{name}': importing it raised {brief(error)}; mend {where}") from error
        raise InputError(f"model '{name}': no such file; type --model FILE.py:factory, an existing one") from error
    except (Exception, SystemExit) as error:
        raise InputError(f"model '{name}': importing it raised {brief(error)}; mend {where}") from error


def _from_path(path: Path) -> ModuleType:
    """The module in a file, run once a process."""
    name = re.sub(r"\W", "_", str(path.with_suffix("")))
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules[name])
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _made(factory: Any, name: str, scale: int | None) -> nn.Module:
    """The network that a factory gives for a scale; a module is taken as it is."""
    if isinstance(factory, nn.Module):
        return bare(factory, name)
    arguments = _arguments(factory, name, scale)
    try:
        found = factory(**arguments)
    except (Exception, SystemExit) as error:
        where = "it" if is_given(name) else name.rpartition(":")[0]
        raise InputError(f"model '{name}': calling it raised {brief(error)}; mend {where}") from error
    return bare(found, name)


def _arguments(factory: Any, name: str, scale: int | None) -> dict[str, int]:
    """What a factory is called with: the scale, where it takes one. Raises InputError where it wants more."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # a class or function without a signature
        return {}
    various = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    wanted = [each.name for each in parameters if each.default is each.empty and each.kind not in various]
    for spelling in SCALE_NAMES:
        optional = spelling == "scale" and scale is not None and spelling in [each.name for each in parameters]
        if spelling in wanted or optional:
            missing, arguments = [each for each in wanted if each != spelling], {spelling: scale or DEFAULT_SCALE}
            break
    else:
        missing, arguments = wanted, {}
    if missing:
        raise InputError(
            f"model '{name}': it takes {', '.join(missing)}, expected a factory without arguments or with scale alone; write one"
            " that calls it"
        )
    return arguments


def _check_repeats(network: nn.Module, again: nn.Module, name: str) -> None:
    """Raise InputError where a factory gives other weights each time: workers would train other networks."""
    first, second = network.state_dict(), again.state_dict()
    for key, tensor in first.items():
        if key not in second or not torch.equal(tensor.nan_to_num(), second[key].nan_to_num()):
            raise InputError(
                f"model '{name}': two calls gave other weights ('{key}'), as the factory leaves them to chance; load a checkpoint"
                " in it, or give --weights FILE"
            )


# ---------------------------------------------------------------- from a checkpoint


def _from_file(path: Path) -> nn.Module:
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

    for part in _candidates(state):
        try:
            found = spandrel.ModelLoader("cpu").load_from_state_dict(part)
        except Exception as error:
            if "Unsupported" in type(error).__name__:
                continue
            raise WeightsError(f"model '{path}': {brief(error)}; {_instead(path)}") from error
        return bare(found.model, str(path))
    raise WeightsError(f"model '{path}': spandrel knows no such architecture; {_instead(path)}")


def _candidates(state: StateDict) -> Iterator[StateDict]:
    """A checkpoint's tensors as they are, without wrappers, and without a trainer's prefix."""
    yield dict(state)
    whole, *_ = below = parts(bare_keys(state))
    for prefix in below:
        if prefix == whole or prefix in TRAINER_PREFIXES or len(below[prefix]) == len(below[whole]):
            yield dict(below[prefix])


def _instead(path: Path) -> str:
    return f"type --model package.module:factory --weights {path}"


# ---------------------------------------------------------------- what it is


def _scale(network: nn.Module, name: str) -> int:
    """How many times larger an image comes out. Raises InputError where none does."""
    failures = []
    for side in PROBES:
        try:
            with torch.no_grad():
                output = network(torch.zeros(1, 3, side, side))
            break
        except Exception as error:  # noqa: BLE001 - what the first image raised is told below
            failures.append(error)
    else:
        image = f"[1, 3, {PROBES[0]}, {PROBES[0]}]"
        raise InputError(
            f"model '{name}': an RGB image {image} raised {brief(failures[0])}; expected a network of RGB images"
        ) from failures[0]
    shape = tuple(output.shape) if isinstance(output, torch.Tensor) else ()
    if len(shape) != 4 or shape[:2] != (1, 3) or shape[2] != shape[3] or shape[2] % side:
        found = list(shape) or type(output).__name__
        raise InputError(f"model '{name}': an image [1, 3, {side}, {side}] gave {found}, expected [1, 3, side, side]")
    return shape[2] // side
