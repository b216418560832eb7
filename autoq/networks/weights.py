"""Checkpoints: read without running code, recognized by their keys, loaded strictly."""

from __future__ import annotations

import argparse
import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from autoq.errors import WeightsError
from autoq.networks.layouts import Layout, plain
from autoq.networks.prefixes import StateDict, bare_keys, fitting, is_counter, nearest, unwrapped

TORCH_STARTS = (b"PK", b"\x80")
"""How the files of torch.save begin: a zip archive, before torch 1.6 a pickle."""

_SCALAR: Any = np.float64(0).__reduce__()[0]
HARMLESS: tuple[Any, ...] = (
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)),
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
)
"""What training scripts keep beside the weights (options, the best PSNR): read, then ignored. None of it runs code."""

INDICES = (torch.int64, torch.int32, torch.bool)
"""What buffers that are no weights hold: the order of channels, positions within a window, a mask."""

KEYS_SHOWN = 3
ASK = "give --weights a .safetensors or .pth file"


def read_state_dict(path: Path) -> StateDict:
    """Tensors of a .safetensors or .pth / .pt file, float32. Never executes code from the file.

    Raises WeightsError when the file is missing, damaged, or a pickled module, or holds no state dict.
    """
    if not path.is_file():
        raise WeightsError(f"weights '{path}': {'a folder' if path.is_dir() else 'no such file'}; {ASK}")
    try:
        loaded = _load(path)
    except WeightsError:
        raise
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"weights '{path}': a pickled Python object, and loading it would run its code; expected a state dict;"
            " where you trust it, save torch.save(model.state_dict(), FILE) there and give that FILE"
        ) from error
    except Exception as error:  # torch raises nearly anything for a damaged file
        if "TorchScript" in str(error):
            raise WeightsError(
                f"weights '{path}': a TorchScript archive, expected a state dict; save"
                " torch.save(torch.jit.load(FILE).state_dict(), NEW) and give that NEW"
            ) from error
        reason = f"{type(error).__name__}: {str(error).partition('. ')[0]}"
        raise WeightsError(f"weights '{path}': not a readable checkpoint ({reason}); {ASK}") from error
    loaded = unwrapped(loaded, path)
    if not isinstance(loaded, Mapping):
        raise WeightsError(f"weights '{path}': expected a state dict of tensors, found {type(loaded).__name__}; {ASK} with one")
    for key, value in loaded.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            found = f"{type(value).__name__} under '{key}'"
            raise WeightsError(f"weights '{path}': expected a state dict of tensors, found {found}; {ASK} with one")
    return {key: value.float() if value.is_floating_point() else value for key, value in loaded.items()}


def _load(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    with path.open("rb") as file:
        if not file.read(2).startswith(TORCH_STARTS):
            raise WeightsError(f"weights '{path}': not a checkpoint; {ASK}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of unusual pickles, which are judged by what is in them
        with torch.serialization.safe_globals([*HARMLESS]):
            return torch.load(path, map_location="cpu", weights_only=True)


def load_model(factory: Callable[..., nn.Module], arguments: Mapping[str, Any], path: Path, layouts: list[Layout]) -> nn.Module:
    """Build the network a checkpoint belongs to, with exactly its tensors.

    factory(**arguments) is the network in our own layout; `layouts` are tried first, on plain keys. Raises WeightsError
    where they do not fit, see `load_strictly`.
    """
    state = read_state_dict(path)
    own = _on_meta(factory, arguments)

    def recognized(part: StateDict) -> tuple[dict[str, Any], StateDict] | None:
        part = plain(part)
        for layout in layouts:
            if (match := layout(part)) is not None:
                return {**arguments, **match[0]}, match[1]
        return (dict(arguments), part) if _fits(own, part) else None

    def whole(part: StateDict) -> tuple[dict[str, Any], StateDict] | None:
        match = recognized(part)
        return match if match and _fits(_on_meta(factory, match[0]), match[1]) else None

    found = fitting(state, path, whole)
    if found is None:
        part = nearest(state, own)
        found = recognized(part) or (dict(arguments), plain(part))
    options, state = found
    if options.get("scale") != arguments.get("scale"):
        raise WeightsError(
            f"weights '{path}': a x{options['scale']} network, asked for x{arguments.get('scale')}; type --scale {options['scale']}"
        )
    model = factory(**options)
    load_strictly(model, state, path, f"{type(model).__name__}({_describe(options)})")
    return model.eval()


def _on_meta(factory: Callable[..., nn.Module], arguments: Mapping[str, Any]) -> StateDict:
    """The shapes of a network's tensors; nothing is allocated."""
    with torch.device("meta"):
        return factory(**arguments).state_dict()


def _fits(expected: StateDict, given: StateDict) -> bool:
    """Whether a state dict has a network's keys and shapes."""
    shapes = [{key: value.shape for key, value in state.items() if not is_counter(key)} for state in (expected, given)]
    return shapes[0] == shapes[1]


def load_own(network: nn.Module, path: Path, name: str) -> None:
    """Give a user's own network the tensors of a checkpoint, from wherever in it they are. Raises WeightsError."""
    state, expected = read_state_dict(path), network.state_dict()
    wanted = bare_keys({key: key for key in expected})
    bare = {key: expected[full] for key, full in wanted.items()}

    def whole(part: StateDict) -> StateDict | None:
        return next((each for each in (part, plain(part)) if _fits(bare, each)), None)

    found = fitting(state, path, whole) or nearest(state, bare)
    load_strictly(network, {wanted.get(key, key): value for key, value in found.items()}, path, name)


def load_strictly(model: nn.Module, state: StateDict, path: Path, network: str) -> None:
    """Give a network exactly the tensors of a state dict; BN's `num_batches_tracked` may be absent.

    Raises WeightsError that names missing, extra and misshapen keys, or the tensor that does not hold finite numbers.
    """
    expected = {key: value for key, value in model.state_dict().items() if not is_counter(key)}
    given = {key: value for key, value in state.items() if not is_counter(key)}
    problems = [
        f"{len(keys)} {what}: {_first(keys)}"
        for what, keys in (
            ("missing", [key for key in expected if key not in given]),
            ("unexpected", [key for key in given if key not in expected]),
            ("misshapen", [key for key in given if key in expected and given[key].shape != expected[key].shape]),
        )
        if keys
    ]
    if problems:
        raise WeightsError(
            f"weights '{path}' do not fit {network}: {'; '.join(problems)}; give --weights that network's, or another --model"
        )
    check_finite(given, path, expected)
    model.load_state_dict(given, strict=False)


def check_finite(state: StateDict, path: Path, expected: Mapping[str, Tensor] | None = None) -> None:
    """Raise WeightsError that names a tensor which does not hold finite numbers; counters are not looked at.

    expected: the network's own tensors; without them integers and truth values are taken for an index or a mask.
    """
    for key, value in state.items():
        integers = not expected[key].is_floating_point() if expected is not None else value.dtype in INDICES
        if not is_counter(key) and (found := _no_number(value, integers)):
            raise WeightsError(
                f"weights '{path}': tensor '{key}' holds {found}, expected finite float numbers; give --weights another checkpoint"
            )


def _no_number(tensor: Tensor, integers: bool) -> str | None:
    """What a tensor holds that is no weight, nor an index where integers belong; None where all is well."""
    if tensor.layout != torch.strided or tensor.is_floating_point() == integers or tensor.is_quantized:
        return f"{tensor.dtype} ({tensor.layout})"
    return None if integers or torch.isfinite(tensor).all() else "NaN or infinity"


def _first(keys: list[str]) -> str:
    more = f" and {len(keys) - KEYS_SHOWN} more" if len(keys) > KEYS_SHOWN else ""
    return ", ".join(keys[:KEYS_SHOWN]) + more


def _describe(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in arguments.items())
