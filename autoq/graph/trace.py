"""Trace a float network: fold batch norms, lower layers to functions of (input, weight, bias), and find quantization sites."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
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
"""torch.fx's name of the output node."""


@dataclass(frozen=True)
class Site:
    """A quantization site: argument `index` of fx node `node`, or its output (index None).

    The roles `image` and `output` are the network's input and output; policies have no format for them.
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


class _Shapes(fx.Interpreter):
    """Runs a network without data and keeps the shape of every tensor."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[str, torch.Size] = {}

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            self.found[n.name] = result.shape
        return result


@dataclass
class Traced:
    """A float network ready for quantization.

    Attributes:
        module: The graph module.
        layers: Convolutions and linear layers in graph order.
        sites: Quantization sites in graph order.
        multiple: The sides of an image must be multiples of this.
        float_layers: Paths of modules with parameters that always run in float: layer norms, attention, learned scales.
    """

    module: fx.GraphModule
    layers: list[Layer]
    sites: list[Site]
    multiple: int = 1
    float_layers: tuple[str, ...] = ()
    _shapes: dict[tuple[int, int], dict[str, torch.Size]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def shapes(self, width: int, height: int) -> Mapping[str, torch.Size]:
        """The shape of every tensor by the name of its node, for one low-resolution image; computed once for each size."""
        if (width, height) not in self._shapes:
            shapes = _Shapes(copy.deepcopy(self.module).to("meta"))
            shapes.run(torch.empty(1, 3, height, width, device="meta"))
            self._shapes[width, height] = shapes.found
        return self._shapes[width, height]

    def fitted(self, side: int) -> int:
        """Round up a side of an image to the network's multiple."""
        return -(-side // self.multiple) * self.multiple

    @property
    def output(self) -> Site:
        """The site of the network's output, for targets with a uint8 output."""
        return Site(OUTPUT, 0, self.layers[-1].stage, "output")


# ---------------------------------------------------------------- trace


def trace(model: nn.Module, patterns: StagePatterns) -> Traced:
    """Trace a copy of a network, run the graph passes, and find its layers and sites.

    Args:
        model: The float network; it does not change.
        patterns: Stage -> patterns of module paths.

    Raises:
        InputError: The model cannot be traced, the traced network computes something else, or a layer has no stage.
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
            raise InputError(
                f"model {type(eager).__name__}: no layer to quantize, expected convolutions or linear layers; give another network"
            )
        mark_maps(module, fits.images[0])
        check_agreement(module, eager, fits.images)
    stages = assign(dict.fromkeys(paths.values()), patterns)
    layers = [Layer(node, path, stages[path]) for node, path in paths.items()]
    module.requires_grad_(False)
    return Traced(module, layers, _find_sites(module, layers), fits.multiple, _float_layers(module, layers))


def _float_layers(module: fx.GraphModule, layers: list[Layer]) -> tuple[str, ...]:
    """Paths of modules and parameters that belong to neither a quantizable layer nor an activation."""
    quantizable = {layer.node for layer in layers}
    paths: dict[str, None] = {}
    parameters = dict(module.named_parameters())
    for node in module.graph.nodes:
        target = str(node.target)
        if (
            node.op == "call_module"
            and not is_activation(module, node)
            and any(True for _ in module.get_submodule(target).parameters())
        ):
            paths[target] = None
        elif node.op == "get_attr" and target in parameters:
            slopes = {user for user in node.users if is_activation(module, user) and user.args[0] is not node}
            readers = [user for user in node.users if user.name not in quantizable and user not in slopes]
            owner = target.rpartition(".")[0]
            if readers:
                paths[target if not owner or any(module.get_submodule(owner).children()) else owner] = None
    return tuple(paths)


def check_integers_only(traced: Traced, target: str) -> None:
    """Check that a network can run on a target without float operations.

    Raises:
        InputError: The network has float layers, or an operation other than a layer reads the image.
    """
    layers = {layer.node for layer in traced.layers}
    if traced.float_layers:
        raise InputError(
            f"target '{target}': '{traced.float_layers[0]}' of this network always runs in float, but the target has only integers;"
            " give a network of convolutions and linear layers, such as xlsr, or another --target"
        )
    readers = [user for node in traced.module.graph.find_nodes(op="placeholder") for user in node.users]
    in_float = [node.name for node in readers if node.name not in layers and not moves_pixels(traced.module, node)]
    if in_float:
        raise InputError(
            f"target '{target}': '{in_float[0]}' of this network reads the image in float, but the target has only integers; give a"
            " network in which only layers read the image, such as xlsr, or another --target"
        )


# ---------------------------------------------------------------- sites


def _find_sites(module: fx.GraphModule, layers: list[Layer]) -> list[Site]:
    stage_of = {layer.node: layer.stage for layer in layers}
    # node -> (number of layers on its longest path, stage of the last of them)
    depth: dict[fx.Node, tuple[int, str | None]] = {}
    sites: list[Site] = []
    weights_seen: set[fx.Node] = set()
    for node in module.graph.nodes:
        inputs = [depth[before] for before in node.all_input_nodes]
        layers_before, stage = max(inputs, key=lambda entry: entry[0], default=(0, None))
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
    """Whether a node computes a float tensor (a parameter is not computed)."""
    return node.op != "get_attr" and bool(node.meta[FLOATS])


def roles_by_stage(sites: Iterable[Site]) -> dict[str, tuple[Role, ...]]:
    """Stage -> roles that it has sites for, without image and output."""
    by_stage: dict[str, set[str]] = {}
    for site in sites:
        by_stage.setdefault(site.stage, set()).add(site.role)
    return {stage: tuple(r for r in ROLES if r in roles) for stage, roles in by_stage.items()}


def producer(module: fx.GraphModule, site: Site) -> fx.Node:
    """The node that produces a site's tensor: an operand of the site's node, or the node itself."""
    node = nodes_by_name(module)[site.node]
    return node if site.index is None else operand(*edge(module, node, site.index))


def edge(module: fx.GraphModule, node: fx.Node, index: int) -> tuple[fx.Node, int]:
    """The edge that a site quantizes, as (reader, argument), moved up through pixel shuffles with a single reader."""
    before = operand(node, index)
    while moves_pixels(module, before) and len(before.users) == 1:
        node, index, before = before, 0, operand(before, 0)
    return node, index


def stage_ends(traced: Traced) -> list[str]:
    """The nodes that compute what the first layer of a stage reads, of every stage but the one that reads the image."""
    first: dict[str, str] = {}
    for site in traced.sites:
        if site.role in ("image", "activation"):
            first.setdefault(site.stage, "" if site.role == "image" else producer(traced.module, site).name)
    return list(dict.fromkeys(name for name in first.values() if name))


def computing(traced: Traced, names: Iterable[str]) -> fx.GraphModule:
    """A copy of the float network that computes these tensors, as a tuple."""
    module = copy.deepcopy(traced.module)
    nodes = nodes_by_name(module)
    (output,) = module.graph.find_nodes(op="output")
    output.args = (tuple(nodes[name] for name in names),)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def channel_axis(weight: fx.Node) -> int:
    """The dimension of a weight's output channels: 1 for a transposed convolution, otherwise 0."""
    return 1 if weight.op == "get_attr" and any(user.target is F.conv_transpose2d for user in weight.users) else 0


def operand(node: fx.Node, index: int) -> fx.Node:
    edge = (skip_edges(node) or node.args)[index]
    assert isinstance(edge, fx.Node)
    return edge


def nodes_by_name(module: fx.GraphModule) -> dict[str, fx.Node]:
    return {node.name: node for node in module.graph.nodes}
