"""A model by its name as a traced network with stages, and whether it still is the network that a study began with."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from autoq.automatic import EVERYTHING, find_stages
from autoq.compat import guest_code
from autoq.errors import InputError
from autoq.models import staged_model
from autoq.models.prefixes import is_counter
from autoq.models.stages import StagePatterns
from autoq.policy import Role
from autoq.spec import TrialSpec
from autoq.tracing import Traced, roles_by_stage, trace

DIGITS = 12


@dataclass(frozen=True)
class Loaded:
    """A float network as it was built, and traced. patterns: its stages. automatic: whether these had to be found."""

    network: nn.Module
    traced: Traced
    patterns: StagePatterns
    automatic: bool = False

    @property
    def roles(self) -> dict[str, tuple[Role, ...]]:
        """stage -> the roles it has a site for."""
        return roles_by_stage(self.traced.sites)

    @property
    def paths(self) -> list[str]:
        """The layers' module paths, in the order of the data."""
        return list(dict.fromkeys(layer.path for layer in self.traced.layers))

    @property
    def stages(self) -> str:
        """The stages and how many layers each has, in words."""
        counts = Counter({layer.path: layer.stage for layer in self.traced.layers}.values())
        return ", ".join(f"{stage} ({counts[stage]} layer{'s' * (counts[stage] != 1)})" for stage in self.patterns)

    @cached_property
    def fingerprint(self) -> str:
        """`TENSORS-GRAPH`, 12 hexadecimal digits each: of all tensors with their names, and of the traced graph."""
        return f"{_digest(_tensors(self.network, self.traced))}-{_digest(_operations(self.traced))}"


def load(model: str, scale: int, weights: Path | None = None, layers: StagePatterns | None = None) -> Loaded:
    """Build and trace a network. layers: its stages; else the table's or the architecture's; else they are found.

    Raises InputError where it cannot be built or traced, or a pattern fits no layer.
    """
    network, patterns = staged_model(model, scale, weights, layers)
    with guest_code():
        found = patterns or find_stages(trace(network, EVERYTHING))
        return Loaded(network, trace(network, found), found, automatic=not patterns)


def load_for(spec: TrialSpec) -> Loaded:
    """The network of a trial. Raises InputError where it is not the one that the study began with."""
    loaded = load(spec.model, spec.scale, spec.weights, dict(spec.layers))
    if spec.fingerprint is not None and (changed := difference(spec.fingerprint, loaded.fingerprint)):
        raise InputError(f"model '{spec.model}': {changed}; restore it, or give another --study")
    return loaded


def difference(before: str, now: str) -> str:
    """What of a network is not as it was, by fingerprints; empty where they are equal."""
    pairs = zip(("weights", "code"), before.split("-"), now.split("-"), strict=True)
    changed = [what for what, was, found in pairs if was != found]
    if not changed:
        return ""
    return f"the network is not what it was when the study began (other {' and other '.join(changed)})"


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:DIGITS]


def _tensors(network: nn.Module, traced: Traced) -> Iterable[bytes]:
    """Parameters, buffers, tensors that are plain attributes, and constants made while tracing: names, shapes, values."""
    named: dict[str, Tensor] = dict(network.state_dict(keep_vars=True))
    named |= dict(network.named_buffers(remove_duplicate=False))
    for path, module in network.named_modules():
        named |= {f"{path}.{key}": value for key, value in vars(module).items() if isinstance(value, Tensor)}
    for node in traced.module.graph.find_nodes(op="get_attr"):
        if str(node.target).startswith("_tensor_constant"):
            named[str(node.target)] = getattr(traced.module, str(node.target))
    for name in sorted(named):
        if not is_counter(name):
            tensor = named[name].detach().cpu().contiguous()
            yield f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
            yield tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def _operations(traced: Traced) -> Iterable[bytes]:
    """The graph's code, and the modules it calls with their options; without addresses of objects."""
    lines = [traced.module.code]
    lines += [
        f"{node.target}: {traced.module.get_submodule(node.target)!r}" for node in traced.module.graph.find_nodes(op="call_module")
    ]
    for line in lines:
        yield re.sub(r"0x[0-9a-f]+", "", line).encode()
