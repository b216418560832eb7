"""A float network as torch.fx sees it: batch norms folded, every layer a function of (input, weight, bias), every place
where numbers cross a site.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import fx, nn

from autoq.config.policy import ROLES, Role
from autoq.errors import InputError
from autoq.graph.agreement import check_agreement
from autoq.graph.capture import capture
from autoq.graph.folding import delay_pixel_shuffles, fold_batch_norms, fold_scalings, lower_layers
from autoq.graph.functional import make_functional, mark_maps
from autoq.graph.operations import CONCATENATIONS, FLOATS, is_activation, moves_pixels, skip_edges
from autoq.networks.sizes import fitting
from autoq.networks.stages import StagePatterns, assign
from autoq.networks.wrappers import duplicate

OUTPUT = "output"
"""What torch.fx calls the node of a network's result."""


@dataclass(frozen=True)
class Site:
    """One place where a number crosses: argument `index` of fx node `node`, or its output (index None).

    role: `output` is what the network gives; no policy names a format for it, nor for the image.
    """

    node: str
    index: int | None
    stage: str
    role: Literal["weight", "activation", "skip", "image", "output"]

    @property
    def name(self) -> str:
        return f"{self.node}.{'output' if self.index is None else self.index}"


@dataclass(frozen=True)
class Layer:
    """A convolution, transposed convolution or linear layer of the traced graph."""

    node: str
    path: str
    stage: str


@dataclass
class Traced:
    """A float network ready for quantization: its graph module, its layers and its sites in graph order.

    multiple: what the sides of an image must be a multiple of. float_layers: paths of what holds parameters and always runs in
    float, as layer norms, attention and learned scales.
    """

    module: fx.GraphModule
    layers: list[Layer]
    sites: list[Site]
    multiple: int = 1
    float_layers: tuple[str, ...] = ()

    def fitted(self, side: int) -> int:
        """A side of an image, or the next longer one that the network takes."""
        return -(-side // self.multiple) * self.multiple

    @property
    def output(self) -> Site:
        """What the network gives: a site where its target takes 8 bits."""
        return Site(OUTPUT, 0, self.layers[-1].stage, "output")


# ---------------------------------------------------------------- trace


def trace(model: nn.Module, patterns: StagePatterns) -> Traced:
    """Trace a network of its image, make it functional, fold BN, lower layers to functions, and find layers and sites.

    The model is copied, not changed; what was traced computes the same, or InputError says where it does not. Raises InputError,
    too, where a layer has no stage, or the model cannot be traced.
    """
    eager = duplicate(model)
    module = capture(duplicate(model))
    with torch.random.fork_rng(devices=[]):
        fits = fitting(eager)
        make_functional(module, fits.images[0])
        fold_batch_norms(module)
        fold_scalings(module)
        delay_pixel_shuffles(module)
        paths = lower_layers(module)
        if not paths:
            raise InputError(f"model {type(eager).__name__} has no convolution and no linear layer that could be quantized")
        mark_maps(module, fits.images[0])
        check_agreement(module, eager, fits.images)
    stages = assign(dict.fromkeys(paths.values()), patterns)
    layers = [Layer(node, path, stages[path]) for node, path in paths.items()]
    module.requires_grad_(False)
    return Traced(module, layers, _find_sites(module, layers), fits.multiple, _float_layers(module, layers))


def _float_layers(module: fx.GraphModule, layers: list[Layer]) -> tuple[str, ...]:
    """Paths of what holds parameters and is no layer that can be quantized, nor an activation."""
    known = {layer.node for layer in layers}
    found: dict[str, None] = {}
    parameters = dict(module.named_parameters())
    for node in module.graph.nodes:
        target = str(node.target)
        if (
            node.op == "call_module"
            and not is_activation(module, node)
            and any(True for _ in module.get_submodule(target).parameters())
        ):
            found[target] = None
        elif node.op == "get_attr" and target in parameters:
            slopes = {user for user in node.users if is_activation(module, user) and user.args[0] is not node}
            readers = [user for user in node.users if user.name not in known and user not in slopes]
            home = target.rpartition(".")[0]
            if readers:
                found[target if not home or any(module.get_submodule(home).children()) else home] = None
    return tuple(found)


def check_integers_only(traced: Traced, target: str) -> None:
    """Raise InputError where a network would compute in float on a target of integers alone: where anything but a layer reads the
    image, or where it has layers that always run in float.
    """
    layers = {layer.node for layer in traced.layers}
    expected = "and everything runs on integers there; give a network"
    if traced.float_layers:
        raise InputError(
            f"target '{target}': '{traced.float_layers[0]}' of this network always runs in float, {expected} of convolutions and"
            " linear layers, as xlsr, or another --target"
        )
    readers = [user for node in traced.module.graph.find_nodes(op="placeholder") for user in node.users]
    in_float = [node.name for node in readers if node.name not in layers and not moves_pixels(traced.module, node)]
    if in_float:
        raise InputError(
            f"target '{target}': '{in_float[0]}' of this network reads the image in float, {expected} whose layers alone read the"
            " image, as xlsr, or another --target"
        )


# ---------------------------------------------------------------- sites


def _find_sites(module: fx.GraphModule, layers: list[Layer]) -> list[Site]:
    stage_of = {layer.node: layer.stage for layer in layers}
    # node -> (number of layers on its deepest path, stage of the last of them)
    depth: dict[fx.Node, tuple[int, str | None]] = {}
    sites: list[Site] = []
    weights_seen: set[fx.Node] = set()
    for node in module.graph.nodes:
        inputs = [depth[before] for before in node.all_input_nodes]
        layers_before, stage = max(inputs, key=lambda known: known[0], default=(0, None))
        if node.name in stage_of:
            layers_before, stage = layers_before + 1, stage_of[node.name]
            sites.append(Site(node.name, 0, stage, "image" if layers_before == 1 else "activation"))
            if node.args[1] not in weights_seen:
                weights_seen.add(node.args[1])
                sites.append(Site(node.name, 1, stage, "weight"))
        elif stage is not None and (edges := skip_edges(node)):
            sites += [Site(node.name, index, stage, "skip") for index, joined in enumerate(edges) if _computed(joined)]
            if node.target not in CONCATENATIONS:
                sites.append(Site(node.name, None, stage, "skip"))
        depth[node] = (layers_before, stage)
    return sites


def _computed(node: fx.Node) -> bool:
    """Whether a node gives a float tensor that is not stored as it is."""
    return node.op != "get_attr" and bool(node.meta[FLOATS])


def roles_by_stage(sites: Iterable[Site]) -> dict[str, tuple[Role, ...]]:
    """stage -> the searchable roles it has a site for (the image has none)."""
    found: dict[str, set[str]] = {}
    for site in sites:
        found.setdefault(site.stage, set()).add(site.role)
    return {stage: tuple(r for r in ROLES if r in roles) for stage, roles in found.items()}


def producer(module: fx.GraphModule, site: Site) -> fx.Node:
    """The node whose tensor crosses at a site: an operand of the site's node, or the node itself."""
    node = nodes_by_name(module)[site.node]
    return node if site.index is None else operand(*edge(module, node, site.index))


def edge(module: fx.GraphModule, node: fx.Node, index: int) -> tuple[fx.Node, int]:
    """The edge a site quantizes, as (reader, argument): moved up through pixel shuffles that nobody else reads."""
    before = operand(node, index)
    while moves_pixels(module, before) and len(before.users) == 1:
        node, index, before = before, 0, operand(before, 0)
    return node, index


def channel_axis(weight: fx.Node) -> int:
    """Which dimension of a weight has the output channels: the second in a transposed convolution, else the first."""
    return 1 if weight.op == "get_attr" and any(user.target is F.conv_transpose2d for user in weight.users) else 0


def operand(node: fx.Node, index: int) -> fx.Node:
    edge = (skip_edges(node) or node.args)[index]
    assert isinstance(edge, fx.Node)
    return edge


def nodes_by_name(module: fx.GraphModule) -> dict[str, fx.Node]:
    return {node.name: node for node in module.graph.nodes}
