"""Load a network by name, trace it, and check that it is still the network that a study began with."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from autoq.config.policy import Role
from autoq.config.spec import TrialSpec
from autoq.errors import InputError
from autoq.graph.stages import EVERYTHING, find_stages
from autoq.graph.trace import Traced, roles_by_stage, trace
from autoq.networks import staged_model
from autoq.networks.prefixes import is_counter
from autoq.networks.stages import StagePatterns
from autoq.system.compat import guest_code

DIGITS = 16
CHANGED = "the network has changed since the study began; restore it, or give another --study"


@dataclass(frozen=True)
class Loaded:
    """A float network, eager and traced. patterns: its stages. automatic: whether the stages were found automatically."""

    network: nn.Module
    traced: Traced
    patterns: StagePatterns
    automatic: bool = False

    @property
    def roles(self) -> dict[str, tuple[Role, ...]]:
        """Stage -> roles that it has sites for."""
        return roles_by_stage(self.traced.sites)

    @property
    def paths(self) -> list[str]:
        """The layers' module paths, in the order of the data flow."""
        return list(dict.fromkeys(layer.path for layer in self.traced.layers))

    @property
    def stages(self) -> str:
        """The stages with their number of layers, as text."""
        counts = Counter({layer.path: layer.stage for layer in self.traced.layers}.values())
        return ", ".join(f"{stage} ({counts[stage]} layer{'s' * (counts[stage] != 1)})" for stage in self.patterns)

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of a hash of the computation: operations, called modules with their options, all tensors."""
        module, digest = self.traced.module, hashlib.sha256()
        for node in module.graph.nodes:
            called = module.get_submodule(str(node.target)) if node.op == "call_module" else getattr(node.target, "__name__", "")
            text = (
                f"{node.name} {node.op} {node.target if isinstance(node.target, str) else ''} {called} {node.args} {node.kwargs}\n"
            )
            digest.update(re.sub(r"0x[0-9a-f]+", "", text).encode())  # remove addresses of objects
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        for name in sorted(tensors):
            if not is_counter(name):
                tensor = tensors[name].detach().contiguous()
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:DIGITS]


def load(model: str, scale: int, weights: Path | None = None, layers: StagePatterns | None = None) -> Loaded:
    """Build and trace a network.

    Args:
        model: Built-in name, `package.module:factory`, or a checkpoint.
        scale: Upscaling factor.
        weights: Checkpoint. Default: the bundled one.
        layers: Stage patterns. Default: those of the table, or automatic ones for custom networks.

    Raises:
        InputError: The network cannot be built or traced, or a pattern matches no layer.
    """
    network, patterns = staged_model(model, scale, weights, layers)
    with guest_code():
        stages = patterns or find_stages(trace(network, EVERYTHING))
        return Loaded(network, trace(network, stages), stages, automatic=not patterns)


def load_for(spec: TrialSpec) -> Loaded:
    """Load the network of a trial. Raises InputError if the network has changed since the study began."""
    loaded = load(spec.model, spec.scale, spec.weights, dict(spec.layers))
    if spec.fingerprint not in (None, loaded.fingerprint):
        raise InputError(f"model '{spec.model}': {CHANGED}")
    return loaded
