"""Registry of networks passed from Python instead of by name; studies store them as `object:NAME`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import nn

from autoq.errors import InputError
from autoq.networks import GIVEN
from autoq.networks.wrappers import bare

Given = nn.Module | Callable[..., Any]
_GIVEN: dict[str, Given] = {}


def give(model: Any) -> str:
    """Register a module, or a function that creates one, in this process.

    A module is copied, so later training does not change it.

    Returns:
        The network's name.

    Raises:
        InputError: The argument is not callable.
    """
    if not callable(model):
        raise InputError(
            f"model: got {type(model).__name__}, expected a name, a torch.nn.Module or a function that creates one;"
            " type autoq.search(model=net)"
        )
    called = type(model).__name__ if isinstance(model, nn.Module) else getattr(model, "__name__", type(model).__name__)
    name = GIVEN + re.sub(r"\W+", "", called)
    keep(name, bare(model, name) if isinstance(model, nn.Module) else model)
    return name


def keep(name: str, model: Given) -> None:
    """Register a network under a given name, as in worker processes."""
    _GIVEN[name] = model


def is_held(name: str) -> bool:
    """Whether a name is registered in this process."""
    return name in _GIVEN


def given(name: str) -> Given:
    """The registered network or function. Raises InputError if the name is not registered in this process."""
    if name not in _GIVEN:
        raise InputError(f"model '{name}' was passed from Python in another process; pass it again: model=net")
    return _GIVEN[name]
