"""Keys of checkpoints without what wrappers and trainers put around them: `module.`, `_orig_mod.`, `model.`, ..."""

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
"""Under which key a checkpoint keeps the state dict, by preference: averaged weights are the ones that ship."""

MODULE_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Attributes under which torch's wrappers keep the module they wrap, around a network or around one of its parts."""

COUNTERS = ("num_batches_tracked", "n_averaged")
"""What batch norm and averaging count; no weights."""

DEPTH = 3
"""A network sits at most so deep in a checkpoint: `state_dict`, `params_ema` and the like, or `model.net.`."""


def unwrapped(checkpoint: Any, path: Path) -> Any:
    """The state dict that a checkpoint holds beside epochs, optimizers and the like.

    Raises WeightsError where it holds several and none by a usual name.
    """
    for _ in range(DEPTH):
        if not isinstance(checkpoint, Mapping) or _is_state(checkpoint):
            break
        inner = [key for key in WRAPPERS if isinstance(checkpoint.get(key), Mapping)]
        inner = inner or [key for key, value in checkpoint.items() if _is_state(value)]
        if not inner:
            break
        if inner[0] not in WRAPPERS and len(inner) > 1:
            found = ", ".join(f"'{key}'" for key in inner)
            raise WeightsError(
                f"weights '{path}': several state dicts ({found}); save the network's alone, torch.save(checkpoint[NAME], FILE)"
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
    """A state dict without wrappers' attributes in its keys; as it is where two keys would become one."""
    bare = {bare_key(key): value for key, value in state.items()}
    return bare if len(bare) == len(state) else dict(state)


def parts(state: Mapping[str, T]) -> dict[str, dict[str, T]]:
    """prefix -> what is below it, without the prefix. The whole comes first, then averaged weights."""
    found: dict[str, dict[str, T]] = {"": {key: value for key, value in state.items() if not is_counter(key) or "." in key}}
    for key, value in state.items():
        names = key.split(".")
        for depth in range(1, min(DEPTH, len(names) - 1) + 1):
            prefix = ".".join(names[:depth]) + "."
            found.setdefault(prefix, {})[key.removeprefix(prefix)] = value
    return dict(sorted(found.items(), key=lambda item: (item[0] != "", not _is_averaged(item[0]))))


def _is_averaged(prefix: str) -> bool:
    return "ema" in prefix.lower() or "average" in prefix.lower()


def fitting(state: StateDict, path: Path, fits: Callable[[StateDict], T | None]) -> T | None:
    """What `fits` makes of the one part of a checkpoint that it accepts; the whole before all others; None without one.

    Raises WeightsError where several parts fit, and not just one of them holds averaged weights.
    """
    accepted: dict[str, T] = {}
    for prefix, part in parts(bare_keys(state)).items():
        if (found := fits(part)) is not None:
            if not prefix:
                return found
            accepted[prefix] = found
    averaged = [prefix for prefix in accepted if _is_averaged(prefix)]
    chosen = averaged if averaged else [*accepted]
    if len(chosen) > 1:
        raise WeightsError(
            f"weights '{path}': the network's tensors are there more than once (below {', '.join(chosen)}); save one of them alone"
        )
    return accepted[chosen[0]] if chosen else None


def nearest(state: StateDict, expected: Mapping[str, Any]) -> StateDict:
    """The part of a checkpoint that has the most of the expected keys, to say what it lacks."""
    return max(parts(bare_keys(state)).values(), key=lambda part: len(expected.keys() & part.keys()))
