"""Find a network's state dict in a checkpoint: strip wrappers and key prefixes such as `module.`, `_orig_mod.`, `model.`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from autoq.errors import WeightsError

T = TypeVar("T")
StateDict = dict[str, Tensor]

WRAPPERS = (
    "params_ema", "params", "state_dict_ema", "model_ema", "ema_state_dict", "g_ema", "ema", "state_dict", "model_state_dict",
    "model", "net", "network", "generator", "net_g", "netG", "G", "weights", "module",
)  # fmt: skip
"""Keys of the state dict in a checkpoint, by preference; averaged weights come first."""

MODULE_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Attributes under which torch's wrappers store the wrapped module."""

COUNTERS = ("num_batches_tracked", "n_averaged")
"""Counters of batch norm and weight averaging; they are not weights."""

DEPTH = 3
"""Maximum nesting of a network in a checkpoint: `state_dict` and `params_ema`, or `model.net.`."""


def unwrapped(checkpoint: Any, path: Path) -> Any:
    """Extract the state dict from a checkpoint with epochs, optimizers and the like.

    Raises:
        WeightsError: There are several state dicts, and none has a usual name.
    """
    for _ in range(DEPTH):
        if not isinstance(checkpoint, Mapping) or _is_state(checkpoint):
            break
        inner = [key for key in WRAPPERS if isinstance(checkpoint.get(key), Mapping)]
        inner = inner or [key for key, value in checkpoint.items() if _is_state(value)]
        if not inner:
            break
        if inner[0] not in WRAPPERS and len(inner) > 1:
            names = ", ".join(f"'{key}'" for key in inner)
            raise WeightsError(
                f"weights '{path}': several state dicts ({names}), expected one; save only the network's:"
                " torch.save(checkpoint[NAME], FILE)"
            )
        checkpoint = checkpoint[inner[0]]
    return checkpoint


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(tensor, Tensor) for tensor in value.values())


def is_counter(key: str) -> bool:
    return key.rpartition(".")[2] in COUNTERS


def bare_key(key: str) -> str:
    """A key without the attributes of torch's wrappers."""
    return ".".join(part for part in key.split(".") if part not in MODULE_WRAPPERS)


def bare_keys(state: Mapping[str, T]) -> dict[str, T]:
    """Remove wrappers' attributes from the keys of a state dict; unchanged if keys would collide."""
    bare = {bare_key(key): value for key, value in state.items()}
    return bare if len(bare) == len(state) else dict(state)


def parts(state: Mapping[str, T]) -> dict[str, dict[str, T]]:
    """Prefix -> the entries below it, without the prefix. The full state dict comes first, then averaged weights."""
    by_prefix: dict[str, dict[str, T]] = {"": {key: value for key, value in state.items() if not is_counter(key) or "." in key}}
    for key, value in state.items():
        names = key.split(".")
        for depth in range(1, min(DEPTH, len(names) - 1) + 1):
            prefix = ".".join(names[:depth]) + "."
            by_prefix.setdefault(prefix, {})[key.removeprefix(prefix)] = value
    return dict(sorted(by_prefix.items(), key=lambda item: (item[0] != "", not _is_averaged(item[0]))))


def _is_averaged(prefix: str) -> bool:
    return "ema" in prefix.lower() or "average" in prefix.lower()


def fitting(state: StateDict, path: Path, fits: Callable[[StateDict], T | None]) -> T | None:
    """Apply `fits` to the parts of a checkpoint.

    Args:
        state: The checkpoint's tensors.
        path: Path of the checkpoint, for messages.
        fits: Returns a result for a matching part, otherwise None.

    Returns:
        The result for the only matching part, with the full state dict preferred and then averaged weights; None if no part
        matches.

    Raises:
        WeightsError: Several parts match.
    """
    accepted: dict[str, T] = {}
    for prefix, part in parts(bare_keys(state)).items():
        if (result := fits(part)) is not None:
            if not prefix:
                return result
            accepted[prefix] = result
    averaged = [prefix for prefix in accepted if _is_averaged(prefix)]
    chosen = averaged if averaged else [*accepted]
    if len(chosen) > 1:
        raise WeightsError(
            f"weights '{path}': several copies of the network's tensors (prefixes {', '.join(chosen)}); save only one of them"
        )
    return accepted[chosen[0]] if chosen else None


def nearest(state: StateDict, expected: Mapping[str, Any]) -> StateDict:
    """The part of a checkpoint with the most expected keys, for the error message."""
    return max(parts(bare_keys(state)).values(), key=lambda part: len(expected.keys() & part.keys()))
