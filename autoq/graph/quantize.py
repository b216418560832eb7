"""One torch.fx pass: a float network in, a fake-quantized network out.

    collect(traced, images)      what the float tensors at the sites look like
    QuantizationPlan(...)        which tensors get which format, and which edges read it
    quantize(traced, policy, ..) the same graph with a quantizer on every edge the policy names

A tensor is quantized per consumer edge: for the operation that reads it, in that operation's stage and
role. Edges that read one tensor in one and the same format share a quantizer.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from autoq.config.policy import FLOAT, Policy, TensorQuant
from autoq.errors import InputError, PolicyError
from autoq.graph.operations import CONCATENATIONS, is_activation, is_image, skip_edges
from autoq.graph.trace import Site, Traced, channel_axis, edge, nodes_by_name, operand, producer
from autoq.quantizers import check, make_quantizer, within
from autoq.quantizers.base import BiasQuantizer, Float16, Quantizer
from autoq.quantizers.minmax import IMAGE_QUANT, image_quantizer
from autoq.quantizers.range_estimators import Statistics

SAMPLE_VALUES = 2**15
"""Values kept of every tensor for the clipping rules."""


@dataclass(frozen=True)
class Execution:
    """How a target runs a quantized network, as far as its numbers depend on it.

    integer_bits: the widest integer it executes. A wider weight is stored as float16 and its layer runs in
    float; a wider activation or skip stays float.
    weight_bits: of the levels that integer weights have at most; more would overflow on the processor.
    fused_sums: a layer whose output only a sum reads is added in the layer's accumulators, so that operand
    is not quantized by itself.
    """

    integer_bits: int = 16
    fused_sums: bool = False
    weight_bits: int = 16


@dataclass(frozen=True)
class Placement:
    """One tensor in one format: the fx node that makes it, its format, and the edges that read it so."""

    source: str
    quant: TensorQuant
    sites: tuple[Site, ...]


@dataclass(frozen=True)
class QuantizationPlan:
    """A policy on a traced network as a target runs it: which tensors get which format.

    Attributes:
        traced: The float network.
        policy: The policy.
        execution: How the target runs it.
    """

    traced: Traced
    policy: Policy
    execution: Execution

    @functools.cached_property
    def placements(self) -> list[Placement]:
        """Which tensors get which format, and which edges read it. The outputs of sums come first.

        Edges of one stage that read one tensor in one format share a placement, a quantized sum's own output
        included: a tensor on a grid is not put on the same grid again. An output of uint8 comes last, on the grid of images.
        """
        formats = {site: format_at(site, self.policy, self.execution.integer_bits) for site in self.traced.sites}
        if self.execution.fused_sums:
            formats |= dict.fromkeys(_fused_operands(self.traced), FLOAT)
        groups: dict[tuple[str, str, TensorQuant], list[Site]] = {}
        for site in sorted(self.traced.sites, key=lambda site: site.index is not None):
            if not formats[site].is_float:
                source = producer(self.traced.module, site).name
                groups.setdefault((source, site.stage, formats[site]), []).append(site)
        found = [Placement(source, quant, tuple(sites)) for (source, _, quant), sites in groups.items()]
        if self.policy.output == "uint8":
            output = producer(self.traced.module, self.traced.output).name
            found.append(Placement(output, IMAGE_QUANT, (self.traced.output,)))
        return found

    @functools.cached_property
    def on_integers(self) -> list[Placement]:
        """The placements in integers that the target executes."""
        return [placement for placement in self.placements if placement.quant.bits <= self.execution.integer_bits]

    @functools.cached_property
    def integer_layers(self) -> tuple[str, ...]:
        """Names of the layers whose input and weight are both integers the target executes."""
        on_integers = {site for placement in self.on_integers for site in placement.sites}
        own: dict[str, list[Site]] = {layer.node: [] for layer in self.traced.layers}
        for site in self.traced.sites:
            if site.node in own:
                own[site.node].append(site)
        return tuple(node for node, sites in own.items() if on_integers.issuperset(sites))


@dataclass(frozen=True)
class Placed:
    """A placement realized: `quantizer` is the path of its submodule."""

    quantizer: str
    placement: Placement


@dataclass(frozen=True)
class Quantized:
    """A fake-quantized network, the plan it follows, and its quantizers."""

    module: fx.GraphModule
    plan: QuantizationPlan
    placed: list[Placed]

    @property
    def integer_layers(self) -> tuple[str, ...]:
        """Names of the layers that run on integers."""
        return self.plan.integer_layers


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
            _check_finite(flat, f"tensor '{n.name}'")
            # drawn at random: a fixed stride would be a multiple of the width and see a single column
            kept = flat[torch.randint(flat.numel(), (self.values,), generator=self.random)]
            self.found.setdefault(n.name, []).append(Statistics(flat.amin()[None], flat.amax()[None], kept[None]))
        return result


@torch.no_grad()
def collect(traced: Traced, images: Iterable[Tensor]) -> dict[str, Statistics]:
    """Statistics of every float tensor a site reads, by fx node name, over calibration images [n, 3, h, w].

    They depend on the float network and the images alone, so one collection serves every policy.
    Raises InputError that names the tensor where one is not finite.
    """
    images = list(images)
    sources = {site: producer(traced.module, site) for site in traced.sites}
    wanted = {
        node.name for site, node in sources.items() if site.role != "weight" and not _is_plain_image(traced.module, site, node)
    }
    recorder = _Recorder(traced.module, wanted, max(1, SAMPLE_VALUES // len(images)))
    for image in images:
        recorder.run(image)
    statistics = {
        name: Statistics(
            torch.stack([part.low for part in parts]).amin(0),
            torch.stack([part.high for part in parts]).amax(0),
            torch.cat([part.sample for part in parts], 1),
            (torch.stack([part.low for part in parts], 1), torch.stack([part.high for part in parts], 1)),
        )
        for name, parts in recorder.found.items()
    }
    parameters = dict(traced.module.named_parameters())
    for site in traced.sites:
        if site.role == "weight":
            weight = sources[site]
            values = parameters[str(weight.target)].transpose(0, channel_axis(weight))
            _check_finite(values, f"weight '{weight.target}'")
            statistics[weight.name] = Statistics.of_tensor(values, per_channel=True)
    return statistics


def _check_finite(values: Tensor, name: str) -> None:
    """Raise InputError where a tensor has no range."""
    if not torch.isfinite(values).all():
        raise InputError(f"calibration: {name} of the float network holds values that are not finite numbers; give other weights")


def _is_plain_image(module: fx.GraphModule, site: Site, source: fx.Node) -> bool:
    """Whether a site reads the image on the grid of 8-bit images, so that nothing need be known of its values."""
    return site.role == "image" and is_image(module, source)


# ---------------------------------------------------------------- quantize


def quantize(traced: Traced, policy: Policy, statistics: Mapping[str, Statistics], execution: Execution) -> Quantized:
    """Put the policy's quantizers into a copy of the float network; its parameters become trainable.

    Raises PolicyError for a stage the policy lacks, and for a quantizer that is not for a tensor's role or width.
    """
    module = copy.deepcopy(traced.module)
    module.requires_grad_(True)
    plan = QuantizationPlan(traced, policy, execution)
    placed = []
    for number, placement in enumerate(plan.placements):
        source = producer(module, placement.sites[0])
        path = f"quantizers.{placement.source}_{number}"
        module.add_submodule(path, _build(module, source, placement, statistics, execution))
        quantizer = insert_behind(module, source, path)
        for site in placement.sites:
            read_from(module, site, quantizer)
        placed.append(Placed(path, placement))
    nodes = nodes_by_name(module)
    for name in plan.integer_layers:
        _quantize_bias(module, nodes[name])
    module.graph.lint()
    module.recompile()
    return Quantized(module, plan, placed)


def format_at(site: Site, policy: Policy, integer_bits: int) -> TensorQuant:
    """The format a policy gives an edge; FLOAT where the target runs it in float."""
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
    nodes = nodes_by_name(traced.module)
    fused = {}
    for site in traced.sites:
        if site.role != "skip" or site.index is None or nodes[site.node].target in CONCATENATIONS:
            continue
        before = producer(traced.module, site)
        if is_activation(traced.module, before):
            before = operand(before, 0) if len(before.users) == 1 else before
        if before.name in layers and len(before.users) == 1:
            fused[site.node] = site  # the last such operand; only one can be fused
    return list(fused.values())


def _build(
    module: fx.GraphModule, source: fx.Node, placement: Placement, statistics: Mapping[str, Statistics], execution: Execution
) -> nn.Module:
    """The quantizer of one tensor."""
    quant, role = placement.quant, placement.sites[0].role
    if quant.bits > execution.integer_bits:
        return Float16()
    if role == "output" or _is_plain_image(module, placement.sites[0], source):
        return image_quantizer()
    if placement.source not in statistics:
        raise PolicyError(f"no statistics of tensor '{placement.source}': calibrate before quantizing")
    if role == "weight":
        check(quant, role, execution.integer_bits)  # the width that was asked for, not the one it may become
        quant = within(quant, execution.weight_bits)
    quantizer = make_quantizer(quant, _per(statistics[placement.source], quant), role, execution.integer_bits)
    quantizer.axis = channel_axis(source)
    return quantizer


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
    node, index = edge(module, nodes_by_name(module)[site.node], site.index)
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
    activation, weight = operand_quantizers(module, node)
    values = module.get_parameter(str(bias.target))
    weight.make_room(values, activation.scale)
    module.add_submodule(path, BiasQuantizer(activation, weight, len(values)))
    with module.graph.inserting_before(node):
        node.update_arg(2, module.graph.call_module(path, (bias,)))


def operand_quantizers(module: fx.GraphModule, layer: fx.Node) -> tuple[Quantizer, Quantizer]:
    """The quantizers of an integer layer's input and weight."""
    activation, weight = (quantizer_of(module, operand(*edge(module, layer, index))) for index in (0, 1))
    assert activation is not None
    assert weight is not None
    return activation, weight


def quantizer_of(module: fx.GraphModule, node: fx.Node) -> Quantizer | None:
    """The quantizer whose output a node is, if it is one's."""
    found = module.get_submodule(str(node.target)) if node.op == "call_module" else None
    return found if isinstance(found, Quantizer) else None
