"""Read checkpoints without running code, recognize their layout by the keys, and load them strictly."""

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
"""First bytes of files written by torch.save: a zip archive, or a pickle before torch 1.6."""

_SCALAR: Any = np.float64(0).__reduce__()[0]
HARMLESS: tuple[Any, ...] = (
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)),
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
)
"""Types that training scripts save next to the weights (options, best PSNR). They are read and ignored; none runs code."""

INDICES = (torch.int64, torch.int32, torch.bool)
"""Types of buffers that are not weights: channel orders, window positions, masks."""

KEYS_SHOWN = 3
ASK = "give a .safetensors or .pth file of tensors"


def read_state_dict(path: Path) -> StateDict:
    """Read the tensors of a .safetensors or .pth / .pt file as float32. Never executes code from the file.

    Raises:
        WeightsError: The file is missing, damaged, a pickled module, or has no state dict.
    """
    if not path.is_file():
        raise WeightsError(f"weights '{path}': {'is a folder' if path.is_dir() else 'no such file'}; {ASK}")
    try:
        loaded = _load(path)
    except WeightsError:
        raise
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"weights '{path}': a pickled Python object, which can run arbitrary code when loaded, expected a state dict;"
            " if you trust it, load it yourself, type `torch.save(model.state_dict(), FILE)` and give FILE"
        ) from error
    except Exception as error:  # torch raises many types of exceptions for damaged files
        if "TorchScript" in str(error):
            raise WeightsError(
                f"weights '{path}': a TorchScript archive, expected a state dict; type"
                " `torch.save(torch.jit.load(FILE).state_dict(), NEW)` and give NEW"
            ) from error
        reason = f"{type(error).__name__}: {str(error).partition('. ')[0]}"
        raise WeightsError(f"weights '{path}': cannot read the checkpoint ({reason}); {ASK}") from error
    loaded = unwrapped(loaded, path)
    if not isinstance(loaded, Mapping):
        raise WeightsError(f"weights '{path}': found {type(loaded).__name__}, expected a state dict of tensors; {ASK}")
    for key, value in loaded.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            entry = f"{type(value).__name__} under '{key}'"
            raise WeightsError(f"weights '{path}': found {entry}, expected a state dict of tensors; {ASK}")
    return {key: value.float() if value.is_floating_point() else value for key, value in loaded.items()}


def _load(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    with path.open("rb") as file:
        if not file.read(2).startswith(TORCH_STARTS):
            raise WeightsError(f"weights '{path}': not a file that torch.save or safetensors wrote; {ASK}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about unusual pickles; their content is checked
        with torch.serialization.safe_globals([*HARMLESS]):
            return torch.load(path, map_location="cpu", weights_only=True)


def load_model(factory: Callable[..., nn.Module], arguments: Mapping[str, Any], path: Path, layouts: list[Layout]) -> nn.Module:
    """Build the network of a checkpoint and load exactly its tensors.

    Args:
        factory: Constructor of the network.
        arguments: Arguments of the constructor for checkpoints in autoq's own layout.
        path: The checkpoint.
        layouts: Published layouts, tried before autoq's own.

    Raises:
        WeightsError: The tensors do not match the network, see `load_strictly`.
    """
    state = read_state_dict(path)
    expected = _on_meta(factory, arguments)

    def recognized(part: StateDict) -> tuple[dict[str, Any], StateDict] | None:
        part = plain(part)
        for layout in layouts:
            if (match := layout(part)) is not None:
                return {**arguments, **match[0]}, match[1]
        return (dict(arguments), part) if _fits(expected, part) else None

    def complete(part: StateDict) -> tuple[dict[str, Any], StateDict] | None:
        match = recognized(part)
        return match if match and _fits(_on_meta(factory, match[0]), match[1]) else None

    match = fitting(state, path, complete)
    if match is None:
        part = nearest(state, expected)
        match = recognized(part) or (dict(arguments), plain(part))
    options, state = match
    if options.get("scale") != arguments.get("scale"):
        raise WeightsError(
            f"weights '{path}': a x{options['scale']} network, but --scale is {arguments.get('scale')};"
            f" type --scale {options['scale']}"
        )
    model = factory(**options)
    load_strictly(model, state, path, f"{type(model).__name__}({_describe(options)})")
    return model.eval()


def _on_meta(factory: Callable[..., nn.Module], arguments: Mapping[str, Any]) -> StateDict:
    """A network's state dict on the meta device: shapes without memory."""
    with torch.device("meta"):
        return factory(**arguments).state_dict()


def _fits(expected: StateDict, given: StateDict) -> bool:
    """Whether a state dict has the expected keys and shapes."""
    shapes = [{key: value.shape for key, value in state.items() if not is_counter(key)} for state in (expected, given)]
    return shapes[0] == shapes[1]


def load_own(network: nn.Module, path: Path, name: str) -> None:
    """Load a checkpoint into a custom network, wherever the tensors are in it. Raises WeightsError if they do not match."""
    state, expected = read_state_dict(path), network.state_dict()
    full_keys = bare_keys({key: key for key in expected})
    bare = {key: expected[full] for key, full in full_keys.items()}

    def complete(part: StateDict) -> StateDict | None:
        return next((candidate for candidate in (part, plain(part)) if _fits(bare, candidate)), None)

    match = fitting(state, path, complete) or nearest(state, bare)
    load_strictly(network, {full_keys.get(key, key): value for key, value in match.items()}, path, name)


def load_strictly(model: nn.Module, state: StateDict, path: Path, network: str) -> None:
    """Load exactly the tensors of a state dict; batch norm's `num_batches_tracked` may be absent.

    Raises:
        WeightsError: Keys are missing, unexpected or have another shape, or a tensor is not finite.
    """
    expected = {key: value for key, value in model.state_dict().items() if not is_counter(key)}
    given = {key: value for key, value in state.items() if not is_counter(key)}
    problems = [
        f"{len(keys)} {problem}: {_first(keys)}"
        for problem, keys in (
            ("missing", [key for key in expected if key not in given]),
            ("unexpected", [key for key in given if key not in expected]),
            ("with another shape", [key for key in given if key in expected and given[key].shape != expected[key].shape]),
        )
        if keys
    ]
    if problems:
        raise WeightsError(
            f"weights '{path}' do not match {network}: {'; '.join(problems)}; give matching --weights, or another --model"
        )
    check_finite(given, path, expected)
    model.load_state_dict(given, strict=False)


def check_finite(state: StateDict, path: Path, expected: Mapping[str, Tensor] | None = None) -> None:
    """Raise WeightsError if a tensor is not finite. Counters are ignored.

    Args:
        state: The tensors.
        path: Path of the checkpoint, for messages.
        expected: The network's tensors. Without them, integers and booleans are accepted as indices and masks.
    """
    for key, value in state.items():
        integers = not expected[key].is_floating_point() if expected is not None else value.dtype in INDICES
        if not is_counter(key) and (content := _invalid(value, integers)):
            raise WeightsError(
                f"weights '{path}': tensor '{key}' contains {content}, expected finite float values; give another checkpoint"
            )


def _invalid(tensor: Tensor, integers: bool) -> str | None:
    """The invalid content of a tensor; None if it is valid. integers: whether integers are expected instead of floats."""
    if tensor.layout != torch.strided or tensor.is_floating_point() == integers or tensor.is_quantized:
        return f"{tensor.dtype} ({tensor.layout})"
    return None if integers or torch.isfinite(tensor).all() else "NaN or infinity"


def _first(keys: list[str]) -> str:
    more = f" and {len(keys) - KEYS_SHOWN} more" if len(keys) > KEYS_SHOWN else ""
    return ", ".join(keys[:KEYS_SHOWN]) + more


def _describe(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in arguments.items())
