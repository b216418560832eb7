"""A float network as torch.fx sees it: batch norms folded, every layer a function of (input, weight, bias), every place
where numbers cross a site.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from autoq.errors import InputError
from autoq.models.stages import StagePatterns, assign
from autoq.policy import ROLES, Role

ELEMENTWISE = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.Tanh, nn.Sigmoid, nn.Hardtanh, nn.GELU, nn.SiLU)
"""Activations; with one slope for all channels they commute with moving pixels about."""

FUNCTIONS = {F.relu, F.relu6, F.leaky_relu, F.prelu, F.hardtanh, F.gelu, F.silu, torch.relu, torch.prelu, torch.tanh, torch.sigmoid}
METHODS = {"relu", "tanh", "sigmoid"}
"""The same as functions and as methods of tensors."""

LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
LAYER_FUNCTIONS = {F.conv2d, F.conv_transpose2d, F.linear}
"""What layers are lowered to."""

PRODUCTS = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}
SUMS = {operator.add, operator.iadd, torch.add, "add", "add_"}
CONCATENATIONS = {torch.cat, torch.concat}
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
    """A float network ready for quantization: its graph module, its layers and its sites in graph order."""

    module: fx.GraphModule
    layers: list[Layer]
    sites: list[Site]

    @property
    def output(self) -> Site:
        """What the network gives: a site where its target takes 8 bits."""
        return Site(OUTPUT, 0, self.layers[-1].stage, "output")


# ---------------------------------------------------------------- trace


def trace(model: nn.Module, patterns: StagePatterns) -> Traced:
    """Fold BN, trace, lower layers to functions, and find layers and sites.

    The model is copied, not changed. Raises InputError where a layer has no stage or the model cannot be traced.
    """
    model = copy.deepcopy(model).eval()
    try:
        module = fx.GraphModule(model, _Tracer().trace(model))
    except (fx.proxy.TraceError, TypeError, RuntimeError, ValueError, LookupError, AttributeError) as error:
        raise InputError(f"model {type(model).__name__} cannot be traced by torch.fx: {error}") from error
    _name_operands(module)
    _fold_batch_norms(module)
    _fold_scalings(module)
    _delay_pixel_shuffles(module)
    paths = _lower_layers(module)
    stages = assign(dict.fromkeys(paths.values()), patterns)
    layers = [Layer(node, path, stages[path]) for node, path in paths.items()]
    module.requires_grad_(False)
    return Traced(module, layers, _find_sites(module, layers))


class _Tracer(fx.Tracer):
    """Keeps layers whole, a user's subclasses that compute as their base does among them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        plain = any(isinstance(m, layer) and type(m).forward is layer.forward for layer in LAYERS)
        return plain or super().is_leaf_module(m, module_qualified_name)


def _name_operands(module: fx.GraphModule) -> None:
    """Sums and concatenations with their tensors, and modules with their input, in front where they were given by keyword."""
    for node in module.graph.nodes:
        if node.op == "call_module" and not node.args and len(node.kwargs) == 1:
            node.args, node.kwargs = tuple(node.kwargs.values()), {}
        keywords = ("tensors",) if node.target in CONCATENATIONS else ("input", "other") if node.target in SUMS else ()
        given = tuple(node.kwargs[name] for name in keywords if name in node.kwargs)
        if given:
            node.kwargs = {name: value for name, value in node.kwargs.items() if name not in keywords}
            node.args = (*node.args, *given)
    module.recompile()


def _fold_batch_norms(module: fx.GraphModule) -> None:
    """Merge each BatchNorm2d that alone reads a convolution into it (FQSR, equation 6)."""
    modules = dict(module.named_modules())
    for node in list(module.graph.nodes):
        if node.op != "call_module" or not isinstance(modules[node.target], nn.BatchNorm2d):
            continue
        before = node.args[0]
        conv = modules.get(before.target) if before.op == "call_module" else None
        if not isinstance(conv, (nn.Conv2d, nn.ConvTranspose2d)) or len(before.users) > 1:
            raise InputError(f"batch norm '{node.target}' does not follow a convolution of its own: it cannot be folded")
        fused = nn.utils.fuse_conv_bn_eval(conv, modules[node.target], isinstance(conv, nn.ConvTranspose2d))
        module.set_submodule(before.target, fused)
        node.replace_all_uses_with(before)
        module.graph.erase_node(node)
    module.delete_all_unused_submodules()
    module.recompile()


def _fold_scalings(module: fx.GraphModule) -> None:
    """Merge each multiplication by a constant that alone reads a convolution into it: residual scaling."""
    modules = dict(module.named_modules())
    for node in list(module.graph.nodes):
        if node.target not in PRODUCTS or len(node.args) != 2:
            continue
        (source, factor) = node.args if isinstance(node.args[0], fx.Node) else node.args[::-1]
        if not isinstance(source, fx.Node) or not isinstance(factor, (int, float)) or source.op != "call_module":
            continue
        layer = modules.get(str(source.target))
        called = sum(other.op == "call_module" and other.target == source.target for other in module.graph.nodes)
        if not isinstance(layer, LAYERS) or len(source.users) > 1 or called > 1:
            continue
        with torch.no_grad():
            layer.weight.mul_(factor)
            if layer.bias is not None:
                layer.bias.mul_(factor)
        node.replace_all_uses_with(source)
        module.graph.erase_node(node)
    module.recompile()


def _delay_pixel_shuffles(module: fx.GraphModule) -> None:
    """Swap a pixel shuffle with the activation that alone reads it: the same values, moved later.

    The activation then sits on the convolution, and the shuffle can move integers instead of floats.
    """
    modules = dict(module.named_modules())
    for node in module.graph.nodes:
        activation = modules.get(node.target) if node.op == "call_module" else None
        if not isinstance(activation, ELEMENTWISE) or getattr(activation, "num_parameters", 1) != 1:
            continue
        shuffle = node.args[0]
        if moves_pixels(module, shuffle) and len(shuffle.users) == 1:
            node.replace_all_uses_with(shuffle)
            node.update_arg(0, shuffle.args[0])
            shuffle.update_arg(0, node)
            node.append(shuffle)
    module.graph.lint()
    module.recompile()


def moves_pixels(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node only moves or repeats values: a pixel shuffle, or interpolation by nearest neighbour."""
    if node.op == "call_module":
        found = module.get_submodule(str(node.target))
        return isinstance(found, nn.PixelShuffle) or (isinstance(found, nn.Upsample) and found.mode == "nearest")
    if node.target is F.interpolate:
        return node.kwargs.get("mode", "nearest") == "nearest"
    return node.target is F.pixel_shuffle


def is_activation(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node is an element-wise activation: a module, a function or a method."""
    if node.op == "call_module":
        return isinstance(module.get_submodule(str(node.target)), ELEMENTWISE)
    return node.target in (METHODS if node.op == "call_method" else FUNCTIONS)


def is_image(node: fx.Node) -> bool:
    """Whether a tensor is the image itself, resized, or its luma: values in [0, 1], on the grid of 8-bit images."""
    if node.op == "placeholder":
        return True
    return node.target in (F.interpolate, F.conv2d) and isinstance(node.args[0], fx.Node) and is_image(node.args[0])


def _lower_layers(module: fx.GraphModule) -> dict[str, str]:
    """Replace layer modules by functions of (input, weight, bias), so that weights are edges like any other.

    Returns fx node name -> module path.
    """
    modules = dict(module.named_modules())
    graph = module.graph
    paths: dict[str, str] = {}
    tensors: dict[str, fx.Node] = {}
    for node in graph.nodes:
        layer = modules.get(node.target) if node.op == "call_module" else None
        if not isinstance(layer, LAYERS):
            _refuse_loose_weights(module, node)
            continue
        if getattr(layer, "padding_mode", "zeros") != "zeros":
            raise InputError(f"layer '{node.target}': autoq cannot quantize padding_mode '{layer.padding_mode}', only zeros")
        paths[node.name] = node.target
        with graph.inserting_before(node):
            for name in ("weight", "bias"):
                path = f"{node.target}.{name}"
                if path not in tensors and getattr(layer, name) is not None:
                    tensors[path] = graph.get_attr(path)
        arguments = (node.args[0], tensors[f"{node.target}.weight"], tensors.get(f"{node.target}.bias"))
        function: Callable[..., Tensor]
        options: tuple[Any, ...]
        if isinstance(layer, nn.Linear):
            function, options = F.linear, ()
        elif isinstance(layer, nn.ConvTranspose2d):
            if layer.groups > 1:
                raise InputError(f"layer '{node.target}': autoq cannot quantize a transposed convolution in {layer.groups} groups")
            function = F.conv_transpose2d
            options = (layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation)
        else:
            function, options = F.conv2d, (layer.stride, layer.padding, layer.dilation, layer.groups)
        node.op, node.target, node.args, node.kwargs = "call_function", function, arguments + options, {}
    graph.lint()
    module.recompile()
    return paths


def _refuse_loose_weights(module: fx.GraphModule, node: fx.Node) -> None:
    """Raise InputError for a convolution that is no layer: its weight would silently stay in float. Constants may."""
    if node.target not in LAYER_FUNCTIONS:
        return
    weight = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
    constant = isinstance(weight, fx.Node) and weight.op == "get_attr" and str(weight.target) in dict(module.named_buffers())
    if not constant:
        raise InputError(
            f"model: '{node.name}' is a convolution whose weight is no layer's (as F.conv2d(x, self.weight)); make it an nn.Conv2d"
        )


def check_reads_pixels(traced: Traced, target: str) -> None:
    """Raise InputError where anything but a layer reads the image: on a target of integers alone it would compute in float."""
    layers = {layer.node for layer in traced.layers}
    readers = [user.name for node in traced.module.graph.find_nodes(op="placeholder") for user in node.users]
    in_float = [name for name in readers if name not in layers]
    if in_float:
        raise InputError(
            f"target '{target}': '{in_float[0]}' of this network reads the image in float, and everything runs on integers"
            " there; give a network whose layers alone read the image, as xlsr, or another --target"
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
            sites += [Site(node.name, index, stage, "skip") for index in range(len(edges))]
            if node.target not in CONCATENATIONS:
                sites.append(Site(node.name, None, stage, "skip"))
        depth[node] = (layers_before, stage)
    return sites


def skip_edges(node: fx.Node) -> list[fx.Node]:
    """The tensors an element-wise sum or a concatenation joins; empty for any other node, and for a weighted sum."""
    if node.target in CONCATENATIONS:
        return list(cast(Sequence[fx.Node], node.args[0]))
    if node.op in ("call_function", "call_method") and node.target in SUMS and node.kwargs.get("alpha", 1) == 1:
        operands = [operand for operand in node.args[:2] if isinstance(operand, fx.Node) and operand.op != "get_attr"]
        return operands if len(operands) == 2 else []
    return []


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
