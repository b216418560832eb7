"""Networks given from Python instead of by a name: kept by this process under `object:NAME`, which studies store."""

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
    """The name that stands for a module, or a function that makes one, in this process from now on.

    A module is copied: what is trained afterwards does not change it. Raises InputError for anything else.
    """
    if not callable(model):
        raise InputError(
            f"model: got {type(model).__name__}, expected a name, a torch.nn.Module or a function that makes one;"
            " type autoq.search(model=net)"
        )
    called = type(model).__name__ if isinstance(model, nn.Module) else getattr(model, "__name__", type(model).__name__)
    name = GIVEN + re.sub(r"\W+", "", called)
    keep(name, bare(model, name) if isinstance(model, nn.Module) else model)
    return name


def keep(name: str, model: Given) -> None:
    """Let a name stand for a network: in a worker process, for the one that its driver was given."""
    _GIVEN[name] = model


def is_held(name: str) -> bool:
    """Whether this process has the network that a name stands for."""
    return name in _GIVEN


def given(name: str) -> Given:
    """The network, or what makes it. Raises InputError in a process that was not given it."""
    if name not in _GIVEN:
        raise InputError(f"model '{name}': a network given from Python, to another process; give it again, as model=net")
    return _GIVEN[name]
