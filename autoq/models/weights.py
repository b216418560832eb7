"""Checkpoints: read without running code, recognized by their keys, loaded strictly."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from autoq.errors import WeightsError
from autoq.models.layouts import Layout, StateDict, plain

TORCH_STARTS = (b"PK", b"\x80")
"""How the files of torch.save begin: a zip archive, before torch 1.6 a pickle."""

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
        reason = f"{type(error).__name__}: {str(error).partition('. ')[0]}"
        raise WeightsError(f"weights '{path}': not a readable checkpoint ({reason}); {ASK}") from error
    for wrapper in ("params_ema", "params", "state_dict"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
            break
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
        return torch.load(path, map_location="cpu", weights_only=True)


def load_model(factory: Callable[..., nn.Module], arguments: Mapping[str, Any], path: Path, layouts: list[Layout]) -> nn.Module:
    """Build the network a checkpoint belongs to, with exactly its tensors.

    factory(**arguments) is the network in our own layout; `layouts` are tried first, on plain keys. Raises WeightsError
    where they do not fit, see `load_strictly`.
    """
    state = plain(read_state_dict(path))
    arguments = dict(arguments)
    for layout in layouts:
        match = layout(state)
        if match is not None:
            overrides, state = match
            if overrides.get("scale", arguments.get("scale")) != arguments.get("scale"):
                raise WeightsError(
                    f"weights '{path}': a x{overrides['scale']} network, asked for x{arguments.get('scale')};"
                    f" type --scale {overrides['scale']}"
                )
            arguments.update(overrides)
            break
    model = factory(**arguments)
    load_strictly(model, state, path, f"{type(model).__name__}({_describe(arguments)})")
    return model.eval()


def load_strictly(model: nn.Module, state: StateDict, path: Path, network: str) -> None:
    """Give a network exactly the tensors of a state dict; BN's `num_batches_tracked` may be absent.

    Raises WeightsError that names missing, extra and misshapen keys, or the tensor that does not hold finite numbers.
    """
    expected = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    given = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
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
    check_finite(given, path)
    model.load_state_dict(given, strict=False)


def check_finite(state: StateDict, path: Path) -> None:
    """Raise WeightsError that names a tensor which does not hold finite numbers; BN's counters are not looked at."""
    for key, value in state.items():
        if not key.endswith("num_batches_tracked") and (found := _no_number(value)):
            raise WeightsError(
                f"weights '{path}': tensor '{key}' holds {found}, expected finite float numbers; give --weights another checkpoint"
            )


def _no_number(tensor: Tensor) -> str | None:
    """What a tensor holds that is no weight; None where all is well."""
    if not tensor.is_floating_point() or tensor.layout != torch.strided:
        return f"{tensor.dtype} ({tensor.layout})"
    return None if torch.isfinite(tensor).all() else "NaN or infinity"


def _first(keys: list[str]) -> str:
    more = f" and {len(keys) - KEYS_SHOWN} more" if len(keys) > KEYS_SHOWN else ""
    return ", ".join(keys[:KEYS_SHOWN]) + more


def _describe(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in arguments.items())
