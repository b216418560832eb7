"""One torch.fx pass: a float network in, a fake-quantized network out.

    trace(model)                 BN folded; every layer a function of (input, weight, bias)
    find_sites(graph, patterns)  where numbers cross: weights, layer inputs, sums and concatenations, the image
    collect(graph, ...)          what the float tensors at those places look like
    quantize(graph, ...)         the same graph with a quantizer on every edge the policy names

A tensor is quantized per consumer edge: for the operation that reads it, in that operation's stage and
role. Edges that read one tensor in one and the same format share a quantizer.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from autoq.errors import InputError, PolicyError
from autoq.models.stages import StagePatterns, assign
from autoq.policy import FLOAT, Policy, TensorQuant
from autoq.quantizers import make_quantizer
from autoq.quantizers.base import BiasQuantizer, Float16, Quantizer
from autoq.quantizers.clipping import Statistics
from autoq.quantizers.functional import dequantize_affine, quantize_sum
from autoq.quantizers.minmax import IMAGE_QUANT, image_quantizer

SAMPLE_VALUES = 2**15
"""Values kept of every tensor for the clipping rules."""

ELEMENTWISE = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.Tanh, nn.Sigmoid)
"""Activations; with one slope for all channels they commute with moving pixels about."""

SUMS = {operator.add, operator.iadd, torch.add, "add", "add_"}
CONCATENATIONS = {torch.cat, torch.concat}


@dataclass(frozen=True)
class Execution:
    """How a target runs a quantized network, as far as its numbers depend on it.

    integer_bits: the widest integer it executes. A wider weight is stored as float16 and its layer runs in
    float; a wider activation or skip stays float.
    fused_sums: a layer whose output only a sum reads is added in the layer's accumulators, so that operand
    never exists as a tensor and is not rounded.
    """

    integer_bits: int = 16
    fused_sums: bool = False


@dataclass(frozen=True)
class Site:
    """One place where a number crosses: argument `index` of fx node `node`, or its output (index None)."""

    node: str
    index: int | None
    stage: str
    role: Literal["weight", "activation", "skip", "image"]

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


@dataclass(frozen=True)
class Placement:
    """One tensor in one format: the fx node that makes it, its format, and the edges that read it so."""

    source: str
    quant: TensorQuant
    sites: tuple[Site, ...]


@dataclass(frozen=True)
class Placed:
    """A placement realized: `quantizer` is the path of its submodule."""

    quantizer: str
    placement: Placement


@dataclass(frozen=True)
class Quantized:
    """A fake-quantized network and what was put where. `integer_layers`: nodes that run on integers."""

    module: fx.GraphModule
    placed: list[Placed]
    integer_layers: tuple[str, ...]


# ---------------------------------------------------------------- trace


def trace(model: nn.Module, patterns: StagePatterns) -> Traced:
    """Fold BN, trace, lower layers to functions, and find layers and sites.

    The model is copied, not changed. Raises InputError where a layer has no stage or the model cannot be traced.
    """
    try:
        module = fx.symbolic_trace(copy.deepcopy(model).eval())
    except (fx.proxy.TraceError, TypeError) as error:
        raise InputError(f"model {type(model).__name__} cannot be traced by torch.fx: {error}") from error
    _fold_batch_norms(module)
    _delay_pixel_shuffles(module)
    paths = _lower_layers(module)
    stages = assign(dict.fromkeys(paths.values()), patterns)
    layers = [Layer(node, path, stages[path]) for node, path in paths.items()]
    module.requires_grad_(False)
    return Traced(module, layers, _find_sites(module, layers))


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
        if _moves_pixels(module, shuffle) and len(shuffle.users) == 1:
            node.replace_all_uses_with(shuffle)
            node.update_arg(0, shuffle.args[0])
            shuffle.update_arg(0, node)
            node.append(shuffle)
    module.graph.lint()
    module.recompile()


def _moves_pixels(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(module.get_submodule(str(node.target)), nn.PixelShuffle)
    return node.target is F.pixel_shuffle


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
        if not isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            continue
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
            function = F.conv_transpose2d
            options = (layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation)
        else:
            function, options = F.conv2d, (layer.stride, layer.padding, layer.dilation, layer.groups)
        node.op, node.target, node.args, node.kwargs = "call_function", function, arguments + options, {}
    graph.lint()
    module.recompile()
    return paths


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
            image = node.args[0].op == "placeholder"
            sites.append(Site(node.name, 0, stage, "image" if image else "activation"))
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
    """The tensors an element-wise sum or a concatenation joins; empty for any other node."""
    if node.target in CONCATENATIONS:
        return list(cast(Sequence[fx.Node], node.args[0]))
    if node.op in ("call_function", "call_method") and node.target in SUMS:
        operands = [argument for argument in node.args[:2] if isinstance(argument, fx.Node)]
        return operands if len(operands) == 2 else []
    return []


def roles_by_stage(sites: Iterable[Site]) -> dict[str, tuple[str, ...]]:
    """stage -> the searchable roles it has a site for (the image has none)."""
    found: dict[str, set[str]] = {}
    for site in sites:
        found.setdefault(site.stage, set()).add(site.role)
    return {stage: tuple(r for r in ("weight", "activation", "skip") if r in roles) for stage, roles in found.items()}


def producer(module: fx.GraphModule, site: Site) -> fx.Node:
    """The node whose tensor crosses at a site: an operand of the site's node, or the node itself."""
    node = _nodes(module)[site.node]
    return node if site.index is None else _operand(*_edge(module, node, site.index))


def _edge(module: fx.GraphModule, node: fx.Node, index: int) -> tuple[fx.Node, int]:
    """The edge a site quantizes, as (reader, argument): moved up through pixel shuffles that nobody else reads."""
    before = _operand(node, index)
    while _moves_pixels(module, before) and len(before.users) == 1:
        node, index, before = before, 0, _operand(before, 0)
    return node, index


def _operand(node: fx.Node, index: int) -> fx.Node:
    edge = (skip_edges(node) or node.args)[index]
    assert isinstance(edge, fx.Node)
    return edge


def _nodes(module: fx.GraphModule) -> dict[str, fx.Node]:
    return {node.name: node for node in module.graph.nodes}


# ---------------------------------------------------------------- statistics


class _Recorder(fx.Interpreter):
    """Runs the float graph and keeps, of the named tensors, the extremes and a random sample of their values."""

    def __init__(self, module: fx.GraphModule, wanted: set[str], values: int) -> None:
        super().__init__(module)
        self.wanted, self.values = wanted, values
        self.random = torch.Generator().manual_seed(0)
        self.found: dict[str, list[Statistics]] = {}

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        if n.name in self.wanted:
            assert isinstance(result, Tensor)
            flat = result.flatten().float()
            # drawn at random: a fixed stride would be a multiple of the width and see a single column
            kept = flat[torch.randint(flat.numel(), (self.values,), generator=self.random)]
            self.found.setdefault(n.name, []).append(Statistics(flat.amin()[None], flat.amax()[None], kept[None]))
        return result


@torch.no_grad()
def collect(traced: Traced, images: Iterable[Tensor]) -> dict[str, Statistics]:
    """Statistics of every float tensor a site reads, by fx node name, over calibration images [n, 3, h, w].

    They depend on the float network and the images alone, so one collection serves every policy.
    """
    images = list(images)
    wanted = {producer(traced.module, site).name for site in traced.sites if site.role in ("activation", "skip")}
    recorder = _Recorder(traced.module, wanted, max(1, SAMPLE_VALUES // len(images)))
    for image in images:
        recorder.run(image)
    statistics = {
        name: Statistics(
            torch.stack([part.low for part in parts]).amin(0),
            torch.stack([part.high for part in parts]).amax(0),
            torch.cat([part.sample for part in parts], 1),
        )
        for name, parts in recorder.found.items()
    }
    parameters = dict(traced.module.named_parameters())
    for site in traced.sites:
        if site.role == "weight":
            weight = producer(traced.module, site)
            statistics[weight.name] = Statistics.of_tensor(parameters[str(weight.target)], per_channel=True)
    return statistics


# ---------------------------------------------------------------- quantize


def place(traced: Traced, policy: Policy, execution: Execution) -> list[Placement]:
    """Which tensors get which format, and which edges read it. Sums' outputs come first.

    Edges of one stage that read one tensor in one format share a placement, a quantized sum's own output
    included: what is on a grid is not put on the same grid again.
    """
    formats = {site: _format(site, policy, execution.integer_bits) for site in traced.sites}
    if execution.fused_sums:
        formats |= dict.fromkeys(_fused_operands(traced), FLOAT)
    groups: dict[tuple[str, str, TensorQuant], list[Site]] = {}
    for site in sorted(traced.sites, key=lambda site: site.index is not None):
        if not formats[site].is_float:
            source = producer(traced.module, site).name
            groups.setdefault((source, site.stage, formats[site]), []).append(site)
    return [Placement(source, quant, tuple(sites)) for (source, _, quant), sites in groups.items()]


def integer_layers(traced: Traced, placements: list[Placement], execution: Execution) -> tuple[str, ...]:
    """Names of the layers whose input and weight are both integers the target executes."""
    on_integers = {site for placement in placements if placement.quant.bits <= execution.integer_bits for site in placement.sites}
    own: dict[str, list[Site]] = {layer.node: [] for layer in traced.layers}
    for site in traced.sites:
        if site.node in own:
            own[site.node].append(site)
    return tuple(node for node, sites in own.items() if on_integers.issuperset(sites))


def quantize(traced: Traced, policy: Policy, statistics: Mapping[str, Statistics], execution: Execution) -> Quantized:
    """Put the policy's quantizers into a copy of the float network; its parameters become trainable.

    Raises PolicyError for a stage the policy lacks.
    """
    module = copy.deepcopy(traced.module)
    module.requires_grad_(True)
    placements = place(traced, policy, execution)
    placed = []
    for number, placement in enumerate(placements):
        source = producer(module, placement.sites[0])
        path = f"quantizers.{placement.source}_{number}"
        module.add_submodule(path, _build(source, placement, statistics, execution.integer_bits))
        quantizer = insert_behind(module, source, path)
        for site in placement.sites:
            read_from(module, site, quantizer)
        placed.append(Placed(path, placement))
    on_integers = integer_layers(traced, placements, execution)
    nodes = _nodes(module)
    for name in on_integers:
        _quantize_bias(module, nodes[name])
    module.graph.lint()
    module.recompile()
    return Quantized(module, placed, on_integers)


def _format(site: Site, policy: Policy, integer_bits: int) -> TensorQuant:
    """The format an edge gets; FLOAT where the target runs it in float."""
    stage = policy.stage(site.stage)
    if site.role == "weight":
        return stage.weight
    if site.role == "skip":
        return stage.skip if stage.skip.bits <= integer_bits else FLOAT
    if stage.weight.bits > integer_bits:
        return FLOAT
    if site.role == "image":
        return IMAGE_QUANT
    return stage.activation if stage.activation.bits <= integer_bits else FLOAT


def _fused_operands(traced: Traced) -> list[Site]:
    """For each sum, the operand that is added in a layer's accumulators: straight from a layer, or through its activation."""
    layers = {layer.node for layer in traced.layers}
    nodes = _nodes(traced.module)
    fused = {}
    for site in traced.sites:
        if site.role != "skip" or site.index is None or nodes[site.node].target in CONCATENATIONS:
            continue
        before = producer(traced.module, site)
        if before.op == "call_module" and isinstance(traced.module.get_submodule(str(before.target)), ELEMENTWISE):
            before = _operand(before, 0) if len(before.users) == 1 else before
        if before.name in layers and len(before.users) == 1:
            fused[site.node] = site  # the last such operand; only one can be fused
    return list(fused.values())


def _build(source: fx.Node, placement: Placement, statistics: Mapping[str, Statistics], integer_bits: int) -> nn.Module:
    """The quantizer of one tensor."""
    quant = placement.quant
    if quant.bits > integer_bits:
        return Float16()
    if source.op == "placeholder":
        return image_quantizer()
    if placement.source not in statistics:
        raise PolicyError(f"no statistics of tensor '{placement.source}': calibrate before quantizing")
    return make_quantizer(quant, _per(statistics[placement.source], quant))


def insert_behind(module: fx.GraphModule, source: fx.Node, path: str) -> fx.Node:
    """Call the submodule at `path` on `source`, right behind it; nobody reads the new node yet."""
    with module.graph.inserting_after(source):
        return module.graph.call_module(path, (source,))


def _per(statistics: Statistics, quant: TensorQuant) -> Statistics:
    """Merge a weight's rows where one scale serves the whole tensor."""
    if quant.granularity == "channel" or statistics.low.numel() == 1:
        return statistics
    return Statistics(statistics.low.amin()[None], statistics.high.amax()[None], statistics.sample.reshape(1, -1))


def read_from(module: fx.GraphModule, site: Site, quantizer: fx.Node) -> None:
    """Make a site's edge read `quantizer` instead of its producer; all edges, for a weight and for a sum's output."""
    if site.index is None or site.role == "weight":
        source = producer(module, site)
        for user in [user for user in source.users if user is not quantizer]:
            user.replace_input_with(source, quantizer)
        return
    node, index = _edge(module, _nodes(module)[site.node], site.index)
    if node.target in CONCATENATIONS:
        edges = skip_edges(node)
        edges[index] = quantizer
        node.args = (edges, *node.args[1:])
    else:
        node.update_arg(index, quantizer)


def _quantize_bias(module: fx.GraphModule, node: fx.Node) -> None:
    """int32 bias at scale_weight x scale_activation, for a layer whose both operands are integers."""
    bias = node.args[2]
    if bias is None:
        return
    assert isinstance(bias, fx.Node)
    path = f"quantizers.{node.name}_bias"
    module.add_submodule(path, BiasQuantizer(*_operand_quantizers(module, node)))
    with module.graph.inserting_before(node):
        node.update_arg(2, module.graph.call_module(path, (bias,)))


def _operand_quantizers(module: fx.GraphModule, layer: fx.Node) -> tuple[Quantizer, Quantizer]:
    """The quantizers of an integer layer's input and weight."""
    activation, weight = (_quantizer(module, _operand(*_edge(module, layer, index))) for index in (0, 1))
    assert activation is not None
    assert weight is not None
    return activation, weight


def _execute_sum(module: fx.GraphModule, path: str) -> None:
    """Merge a sum and the quantizer at `path` behind it, where one operand of the sum is on a grid and the other is not."""
    (output,) = module.graph.find_nodes(op="call_module", target=path)
    total = output.args[0]
    quantizers = [_quantizer(module, operand) for operand in skip_edges(total)]
    if sum(quantizer is not None for quantizer in quantizers) != 1:
        return
    which = 0 if quantizers[0] is not None else 1
    operand, addend = skip_edges(total)[which], skip_edges(total)[1 - which]
    target = f"sum_{total.name}"
    own, of_output = quantizers[which], _quantizer(module, output)
    assert own is not None
    assert of_output is not None
    module.add_submodule(target, IntegerSum(own, of_output))
    output.target, output.args = target, (operand, addend)


def _quantizer(module: fx.GraphModule, node: fx.Node) -> Quantizer | None:
    """The quantizer whose output a node is, if it is one's."""
    found = module.get_submodule(str(node.target)) if node.op == "call_module" else None
    if isinstance(found, IntegerSum):
        return found.output
    return found if isinstance(found, Quantizer) else None


# ---------------------------------------------------------------- as executed


class IntegerLayer(nn.Module):
    """A layer computed as an integer kernel does: exact integer products and sums, one multiplication by the scales.

    The float simulation sums rounded products; where a result lies between two levels of the next
    quantizer, that is enough to take the other one. Sums stay exact in float32 below 2^24.
    """

    def __init__(
        self, function: Callable[..., Tensor], options: tuple[object, ...], activation: Quantizer, weight: Quantizer
    ) -> None:
        super().__init__()
        self.function, self.options = function, options
        self.activation, self.weight = activation, weight

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        activation_scale, weight_scale = self.activation.scale, self.weight.scale
        integers = torch.round(x / activation_scale)
        weights = torch.round(weight / weight_scale.reshape(-1, *[1] * (weight.dim() - 1)))
        sums = self.function(integers, weights, None, *self.options)
        shape = (1, -1) + (1,) * (sums.dim() - 2)
        result = sums * (activation_scale * weight_scale).reshape(shape)
        return result if bias is None else result + bias.reshape(shape)


class IntegerSum(nn.Module):
    """A sum of an integer tensor and a layer's result, quantized: see `functional.quantize_sum`."""

    def __init__(self, operand: Quantizer, output: Quantizer) -> None:
        super().__init__()
        self.operand, self.output = operand, output

    def forward(self, operand: Tensor, addend: Tensor) -> Tensor:
        scale, zero_point = self.output.scale, self.output.zero_point
        integers = quantize_sum(
            operand, addend, self.operand.scale, self.operand.zero_point, scale, zero_point, self.output.qmin, self.output.qmax
        )
        return dequantize_affine(integers, scale, zero_point)


def as_executed(quantized: Quantized) -> fx.GraphModule:
    """The trained network with its integer layers and sums computed as integer runtimes do: what evaluation and export agree on."""
    module = copy.deepcopy(quantized.module).eval()
    for placed in quantized.placed:
        if placed.placement.sites[0].index is None:
            _execute_sum(module, placed.quantizer)
    nodes = _nodes(module)
    for name in quantized.integer_layers:
        node = nodes[name]
        activation, weight = _operand_quantizers(module, node)
        path = f"integer_{name}"
        module.add_submodule(path, IntegerLayer(cast(Callable[..., Tensor], node.target), node.args[3:], activation, weight))
        node.op, node.target, node.args = "call_module", path, node.args[:3]
    module.graph.lint()
    module.recompile()
    return module
