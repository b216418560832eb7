"""Custom networks: a factory or module of the user, or a checkpoint whose architecture spandrel recognizes.

`package.module:factory` and `FILE.py:factory` are imported, also from the current folder, and called (with `scale` if the
factory accepts it). `FILE.pth` is read without running code; spandrel finds the architecture from its keys.
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
"""Sides, in pixels, of the images that are tried in turn to find a network's scale."""

SCALE_NAMES = ("scale", "upscale", "upscale_factor", "scale_factor", "upscaling")
"""Names of a factory's scale parameter. `scale` is always passed; the others only if the parameter has no default."""

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
"""Key prefixes of the network in trainers' checkpoints, for architectures whose keys are unknown."""


def build(name: str, scale: int | None, weights: Path | None, is_file: bool) -> nn.Module:
    """Build a custom network in eval mode.

    Args:
        name: `package.module:factory`, `FILE.py:factory`, a checkpoint, or the name of a network passed from Python.
        scale: Expected scale; None for any.
        weights: Checkpoint for the factory's network.
        is_file: Whether `name` is a checkpoint.

    Raises:
        InputError: The factory or the architecture cannot be used, or the network has another scale.
    """
    with guest_code():
        network = _from_file(Path(name)) if is_file else _from_factory(name, scale, weights)
        fold(network)
        network.requires_grad_(False)
        actual = _scale(network, name)
    if scale not in (None, actual):
        raise InputError(f"model '{name}': a x{actual} network, but --scale is {scale}; type --scale {actual}")
    return network


def own_scale(name: str, is_file: bool) -> int:
    """The scale of a custom network, found by running an image."""
    with guest_code():
        return _scale(_from_file(Path(name)) if is_file else _made(_factory(name), name, None), name)


# ---------------------------------------------------------------- from Python


def _from_factory(name: str, scale: int | None, weights: Path | None) -> nn.Module:
    factory = _factory(name)
    network = _made(factory, name, scale)
    if weights is not None:
        try:
            load_own(network, weights, name)
        except WeightsError as misfit:  # the network may be parametrized (weight norm) and the checkpoint folded
            fold(network)
            try:
                load_own(network, weights, name)
            except WeightsError:
                raise misfit from None
    elif not isinstance(factory, nn.Module):
        _check_repeats(network, _made(factory, name, scale), name)
    return network


def _factory(name: str) -> Any:
    """The module or callable that a name refers to."""
    if is_given(name):
        return given(name)
    if not re.fullmatch(r"([A-Za-z_][\w.]*|.*\.py):[A-Za-z_][\w.]*", name):
        raise InputError(f"model '{name}': expected the form package.module:factory, for example --model mynet:make")
    where, _, attribute = name.rpartition(":")
    module = _imported(where, name)
    try:
        factory = functools.reduce(getattr, attribute.split("."), module)
    except AttributeError:
        factory = None
    if not callable(factory):
        raise InputError(f"model '{name}': {where} has no function or class '{attribute}'; type --model {where}:FACTORY")
    return factory


def _imported(where: str, name: str) -> ModuleType:
    """Import a module by name or path, as `python -m` and `python FILE` would. Raises InputError if the import fails."""
    path = Path(where).resolve() if where.endswith(".py") else None
    folder = str(Path.cwd() if path is None else path.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(where) if path is None else _from_path(path)
    except ImportError as error:
        raise InputError(
            f"model '{name}': {error}; run autoq in the folder that holds the module, or add that folder to PYTHONPATH"
        ) from error
    except FileNotFoundError as error:
        if path is None or path.is_file():
            raise InputError(f"model '{name}': the import raised {brief(error)}; fix {where}") from error
        raise InputError(f"model '{name}': no such file; type --model FILE.py:factory with an existing file") from error
    except (Exception, SystemExit) as error:
        raise InputError(f"model '{name}': the import raised {brief(error)}; fix {where}") from error


def _from_path(path: Path) -> ModuleType:
    """The module of a file, executed once per process."""
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
    """Call a factory for a scale; a module is used directly."""
    if isinstance(factory, nn.Module):
        return bare(factory, name)
    arguments = _arguments(factory, name, scale)
    try:
        result = factory(**arguments)
    except (Exception, SystemExit) as error:
        where = "the function" if is_given(name) else name.rpartition(":")[0]
        raise InputError(f"model '{name}': the call raised {brief(error)}; fix {where}") from error
    return bare(result, name)


def _arguments(factory: Any, name: str, scale: int | None) -> dict[str, int]:
    """The arguments for a factory: the scale if it accepts one. Raises InputError if it needs others."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # a class or function without a signature
        return {}
    various = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = [p.name for p in parameters if p.default is p.empty and p.kind not in various]
    for spelling in SCALE_NAMES:
        optional = spelling == "scale" and scale is not None and spelling in [p.name for p in parameters]
        if spelling in required or optional:
            missing, arguments = [other for other in required if other != spelling], {spelling: scale or DEFAULT_SCALE}
            break
    else:
        missing, arguments = required, {}
    if missing:
        raise InputError(
            f"model '{name}': the factory requires {', '.join(missing)}, expected no required arguments except scale; write a"
            " function that calls it with these arguments"
        )
    return arguments


def _check_repeats(network: nn.Module, again: nn.Module, name: str) -> None:
    """Raise InputError if two calls of a factory give different weights, as workers would train different networks."""
    first, second = network.state_dict(), again.state_dict()
    for key, tensor in first.items():
        if key not in second or not torch.equal(tensor.nan_to_num(), second[key].nan_to_num()):
            raise InputError(
                f"model '{name}': two calls give different weights ('{key}'), probably random initialization; load a checkpoint in"
                " the factory, or give --weights FILE"
            )


# ---------------------------------------------------------------- from a checkpoint


def _from_file(path: Path) -> nn.Module:
    if importlib.util.find_spec("spandrel") is None:
        raise InputError(
            f"model '{path}': recognizing the architecture of a checkpoint needs spandrel; type `pip install 'autoq[spandrel]'`, or"
            f" `--model NAME --weights {path}`"
        )
    if not path.is_file():
        raise InputError(f"model '{path}': no such file; type the path of an existing checkpoint, or a name from `autoq models`")
    state = read_state_dict(path)
    check_finite(state, path)
    allow_torchvision()
    import spandrel

    for part in _candidates(state):
        try:
            descriptor = spandrel.ModelLoader("cpu").load_from_state_dict(part)
        except Exception as error:
            if "Unsupported" in type(error).__name__:
                continue
            raise WeightsError(f"model '{path}': {brief(error)}; {_instead(path)}") from error
        return bare(descriptor.model, str(path))
    raise WeightsError(f"model '{path}': spandrel does not recognize the architecture; {_instead(path)}")


def _candidates(state: StateDict) -> Iterator[StateDict]:
    """A checkpoint's tensors unchanged, without wrappers, and without a trainer's prefix."""
    yield dict(state)
    root, *_ = by_prefix = parts(bare_keys(state))
    for prefix in by_prefix:
        if prefix == root or prefix in TRAINER_PREFIXES or len(by_prefix[prefix]) == len(by_prefix[root]):
            yield dict(by_prefix[prefix])


def _instead(path: Path) -> str:
    return f"type --model package.module:factory --weights {path}"


# ---------------------------------------------------------------- scale


def _scale(network: nn.Module, name: str) -> int:
    """The upscaling factor of a network. Raises InputError if it does not upscale an RGB image."""
    failures = []
    for side in PROBES:
        try:
            with torch.no_grad():
                output = network(torch.zeros(1, 3, side, side))
            break
        except Exception as error:  # noqa: BLE001 - the first one is reported below
            failures.append(error)
    else:
        image = f"[1, 3, {PROBES[0]}, {PROBES[0]}]"
        raise InputError(f"model '{name}': input {image} raised {brief(failures[0])}; give a network of RGB images") from failures[
            0
        ]
    shape = tuple(output.shape) if isinstance(output, torch.Tensor) else ()
    if len(shape) != 4 or shape[:2] != (1, 3) or shape[2] != shape[3] or shape[2] % side:
        actual = list(shape) or type(output).__name__
        raise InputError(
            f"model '{name}': input [1, 3, {side}, {side}] gives output {actual}, expected [1, 3, s * {side}, s * {side}] with an"
            " integer scale s; give a super-resolution network of RGB images"
        )
    return shape[2] // side
