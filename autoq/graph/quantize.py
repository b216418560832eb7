"""Turn a traced float network into a fake-quantized network.

    collect(traced, images)      collect statistics of the float tensors at all sites
    QuantizationPlan(...)        decide the format of each tensor and the edges that read it
    quantize(traced, policy, ..) insert a quantizer at every edge that the policy quantizes

Tensors are quantized per consumer edge, with the stage and role of the operation that reads them. Edges that read the same
tensor in the same format share a quantizer.
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
"""Size of the sample of every tensor's values for range estimators."""


@dataclass(frozen=True)
class Execution:
    """Properties of a target that affect the numbers of a quantized network.

    Attributes:
        integer_bits: The widest integer that the target executes. Wider weights are stored as float16 and their layers run
            in float; wider activations and skips stay float.
        fused_sums: Whether a layer whose output is read by a sum only is added in the layer's accumulators; that operand is
            then not quantized.
        weight_bits: Most bits of integer weights; more would overflow on the processor.
    """

    integer_bits: int = 16
    fused_sums: bool = False
    weight_bits: int = 16


@dataclass(frozen=True)
class Placement:
    """A tensor in one format: the fx node that produces it, the format, and the edges that read it."""

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
        """The format of each tensor and the edges that read it. Outputs of sums come first.

        Edges of one stage that read the same tensor in the same format share a placement, including the output of a
        quantized sum, so that no tensor is quantized twice to the same grid. A uint8 output comes last, on the grid of images.
        """
        formats = {site: format_at(site, self.policy, self.execution.integer_bits) for site in self.traced.sites}
        if self.execution.fused_sums:
            formats |= dict.fromkeys(_fused_operands(self.traced), FLOAT)
        groups: dict[tuple[str, str, TensorQuant], list[Site]] = {}
        for site in sorted(self.traced.sites, key=lambda site: site.index is not None):
            if not formats[site].is_float:
                source = producer(self.traced.module, site).name
                groups.setdefault((source, site.stage, formats[site]), []).append(site)
        placements = [Placement(source, quant, tuple(sites)) for (source, _, quant), sites in groups.items()]
        if self.policy.output == "uint8":
            output = producer(self.traced.module, self.traced.output).name
            placements.append(Placement(output, IMAGE_QUANT, (self.traced.output,)))
        return placements

    @functools.cached_property
    def on_integers(self) -> list[Placement]:
        """The placements in integers that the target executes."""
        return [placement for placement in self.placements if placement.quant.bits <= self.execution.integer_bits]

    @functools.cached_property
    def integer_layers(self) -> tuple[str, ...]:
        """Names of the layers whose input and weight are both integers that the target executes."""
        on_integers = {site for placement in self.on_integers for site in placement.sites}
        by_layer: dict[str, list[Site]] = {layer.node: [] for layer in self.traced.layers}
        for site in self.traced.sites:
            if site.node in by_layer:
                by_layer[site.node].append(site)
        return tuple(node for node, sites in by_layer.items() if on_integers.issuperset(sites))


@dataclass(frozen=True)
class Placed:
    """A placement and the path of its quantizer's submodule."""

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
    """Runs the float graph and records the extremes and a random sample of the named tensors."""

    def __init__(self, module: fx.GraphModule, wanted: set[str], values: int) -> None:
        super().__init__(module)
        self.wanted, self.values = wanted, values
        self.random = torch.Generator().manual_seed(0)
        self.statistics: dict[str, list[Statistics]] = {}

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        if n.name in self.wanted:
            assert isinstance(result, Tensor)
            flat = result.flatten().float()
            low, high = torch.aminmax(flat)
            _check_finite(torch.stack([low, high]), f"tensor '{n.name}'")  # a NaN or infinity is one of them
            # a random sample, as a fixed stride could be a multiple of the width and select a single column
            sample = flat[torch.randint(flat.numel(), (self.values,), generator=self.random)]
            self.statistics.setdefault(n.name, []).append(Statistics(low[None], high[None], sample[None]))
        return result


@torch.no_grad()
def collect(traced: Traced, images: Iterable[Tensor]) -> dict[str, Statistics]:
    """Collect statistics of every float tensor that a site reads.

    They depend only on the float network and the images, so one collection serves every policy.

    Args:
        traced: The float network.
        images: Calibration images, each [n, 3, h, w].

    Returns:
        fx node name -> statistics.

    Raises:
        InputError: A tensor is not finite.
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
        for name, parts in recorder.statistics.items()
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
    """Raise InputError for a tensor with NaN or infinity."""
    if not torch.isfinite(values).all():
        raise InputError(f"calibration: {name} of the float network contains NaN or infinity; give other weights")


def _is_plain_image(module: fx.GraphModule, site: Site, source: fx.Node) -> bool:
    """Whether a site reads the image on the grid of 8-bit images, which needs no calibration."""
    return site.role == "image" and is_image(module, source)


# ---------------------------------------------------------------- quantize


def quantize(traced: Traced, policy: Policy, statistics: Mapping[str, Statistics], execution: Execution) -> Quantized:
    """Insert the policy's quantizers into a copy of the float network, with trainable parameters.

    Args:
        traced: The float network.
        policy: The policy.
        statistics: Statistics of the tensors, from `collect`.
        execution: Properties of the target.

    Raises:
        PolicyError: The policy lacks a stage, or a quantizer does not support a tensor's role or width.
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
    """The format of an edge under a policy; FLOAT if the target runs it in float."""
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
    """For each sum, the operand that is added in a layer's accumulators: a layer's output, directly or after its activation."""
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
        raise PolicyError(f"no statistics for tensor '{placement.source}'; call collect() before quantize()")
    if role == "weight":
        check(quant, role, execution.integer_bits)  # checks the requested width, which `within` may reduce
        quant = within(quant, execution.weight_bits)
    quantizer = make_quantizer(quant, _per(statistics[placement.source], quant), role, execution.integer_bits)
    quantizer.axis = channel_axis(source)
    return quantizer


def insert_behind(module: fx.GraphModule, source: fx.Node, path: str) -> fx.Node:
    """Insert a call of the submodule at `path` after `source`; the new node has no readers yet."""
    with module.graph.inserting_after(source):
        return module.graph.call_module(path, (source,))


def _per(statistics: Statistics, quant: TensorQuant) -> Statistics:
    """Merge a weight's rows for per-tensor granularity."""
    if quant.granularity == "channel" or statistics.low.numel() == 1:
        return statistics
    return Statistics(statistics.low.amin()[None], statistics.high.amax()[None], statistics.sample.reshape(1, -1))


def read_from(module: fx.GraphModule, site: Site, quantizer: fx.Node) -> None:
    """Make a site's edge read `quantizer` instead of its producer. Weights and outputs of sums: all edges."""
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
    """Quantize the bias of an integer layer to int32 at scale_weight x scale_activation."""
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
    """The quantizer that a node calls; None for other nodes."""
    called = module.get_submodule(str(node.target)) if node.op == "call_module" else None
    return called if isinstance(called, Quantizer) else None
