"""Find the stages of a custom network automatically from its traced graph."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import fx

from autoq.graph.trace import Traced
from autoq.networks.stages import StagePatterns

STAGES = ("feature_extraction", "body", "upsampling", "reconstruction")
"""In the order of the data flow."""

EVERYTHING: StagePatterns = {"body": ("*",)}
"""One stage for all layers."""

PROBE = 24
"""Side of the image that is assumed to find the size of every tensor, rounded up to the network's multiple."""


def find_stages(traced: Traced) -> StagePatterns:
    """Assign every layer to a stage.

    feature_extraction: layers that read the image.
    reconstruction: layers that produce the output.
    upsampling: layers in between that read or produce a tensor larger than the first layer's output (transposed
    convolutions, convolutions before a pixel shuffle).
    body: all other layers.

    A fixed colour transformation at either end (1x1 from 3 to 3 channels) joins the stage of the adjacent layers.

    Returns:
        Stage -> patterns of module paths, without empty stages.
    """
    facts = _Facts.of(traced)
    stages: dict[str, str] = {}
    for layer in traced.layers:
        stages.setdefault(layer.path, facts.stage(layer.node))
    all_patterns = {stage: patterns_of([path for path in stages if stages[path] == stage], stages) for stage in STAGES}
    return {stage: patterns for stage, patterns in all_patterns.items() if patterns}


@dataclass(frozen=True)
class _Facts:
    """Names of the layers that read the image, that produce the output, and that produce or read upsampled tensors."""

    first: set[str]
    last: set[str]
    raised: set[str]

    @classmethod
    def of(cls, traced: Traced) -> _Facts:
        layers, nodes = {layer.node for layer in traced.layers}, list(traced.module.graph.nodes)
        shapes = _shapes(traced)
        sizes = {node: shape[2] for node, shape in shapes.items()}
        colours = {node.name for node in nodes if node.name in layers and _changes_colours(traced.module, node)}
        # most layers on a path from the image to a node, including itself, and from the node to the output
        before, after = _depths(nodes, layers - colours, forward=True), _depths(nodes, layers - colours, forward=False)
        first = {node.name for node in nodes if node.name in layers and before[node] == (node.name not in colours)}
        last = {node.name for node in nodes if node.name in layers and after[node] == (node.name not in colours)}
        trunk = max((node for node in nodes if node.name in first), key=lambda node: after[node], default=None)
        base = max(sizes.get(trunk, 0), 1) if trunk is not None else 1
        # tensors that are larger than the first features
        raised = {node for node in nodes if before[node] and sizes.get(node, 0) > base}
        for node in nodes:
            if any(source in raised for source in node.all_input_nodes):
                raised.add(node)
        spread = {node.name for node in nodes if node.name in layers and _is_spread(node, shapes, raised, layers)}
        return cls(first, last, {node.name for node in raised} | spread)

    def stage(self, node: str) -> str:
        if node in self.first:
            return STAGES[0]
        if node in self.last:
            return STAGES[3]
        return STAGES[2] if node in self.raised else STAGES[1]


def _shapes(traced: Traced) -> dict[fx.Node, torch.Size]:
    """Node -> shape of its feature maps."""
    side = traced.fitted(PROBE)
    found = traced.shapes(side, side)
    nodes = [node for node in traced.module.graph.nodes if node.name in found and node.op != "get_attr"]
    return {node: found[node.name] for node in nodes if len(found[node.name]) == 4}


def _changes_colours(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a layer is a 1x1 convolution from 3 to 3 channels: a mean shift or a channel permutation."""
    weight = node.args[1]
    if not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return False
    holder, _, name = str(weight.target).rpartition(".")
    return tuple(getattr(module.get_submodule(holder), name).shape) == (3, 3, 1, 1)


def _depths(nodes: Iterable[fx.Node], layers: set[str], forward: bool) -> dict[fx.Node, int]:
    """Most layers on a path from the image to a node, or from the node to the output; a layer counts itself."""
    depths: dict[fx.Node, int] = {}
    for node in nodes if forward else reversed(list(nodes)):
        neighbours = node.all_input_nodes if forward else node.users
        depths[node] = max((depths[other] for other in neighbours), default=0) + (node.name in layers)
    return depths


def _is_spread(node: fx.Node, shapes: Mapping[fx.Node, torch.Size], raised: set[fx.Node], layers: set[str]) -> bool:
    """Whether a layer is a sub-pixel convolution: a pixel shuffle spreads its channels before the next layer."""
    ahead, seen = [*node.users], set()
    while ahead:
        user = ahead.pop()
        if user in seen or user.name in layers or len(user.all_input_nodes) > 1 or user not in shapes:
            continue
        seen.add(user)
        if user in raised:  # a pixel shuffle keeps the number of values, interpolation does not
            return node in shapes and shapes[user].numel() == shapes[node].numel()
        ahead += user.users
    return False


def patterns_of(chosen: Iterable[str], every: Iterable[str]) -> tuple[str, ...]:
    """The fewest patterns that match the chosen module paths and no others: `body.*`, `tail`."""
    wanted, paths = set(chosen), list(every)
    patterns: list[str] = []

    def descend(prefix: str, inside: list[str]) -> None:
        children: dict[str, list[str]] = {}
        for path in inside:
            children.setdefault(path.removeprefix(prefix).partition(".")[0], []).append(path)
        for name, members in children.items():
            path = prefix + name
            if not wanted.intersection(members):
                continue
            if path in members:
                patterns.extend([glob.escape(path)] if path in wanted else [])
                members = [member for member in members if member != path]
            if members and wanted.issuperset(members):
                patterns.append(f"{glob.escape(path)}.*")
            elif members:
                descend(f"{path}.", members)

    descend("", paths)
    return tuple(patterns)
