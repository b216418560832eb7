"""Costs of a policy that do not depend on hardware: multiplications weighed by bit widths, and memory for feature maps.

Wang et al. 2021 (Fully Quantized Image Super-Resolution Networks, tables 2 to 4) count operations as multiplications
x weight bits x feature map bits / 1024, of layers alone, without biases, BN folded; an operation of two 32-bit numbers
is 1. A layer that the target runs in float counts as one, whatever its weights are stored as.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch.nn.functional as F
from torch import fx

from autoq.config.policy import FLOAT_BITS
from autoq.graph.operations import is_activation, moves_pixels, skip_edges
from autoq.graph.quantize import QuantizationPlan, format_at
from autoq.graph.trace import Site, nodes_by_name
from autoq.quantizers.minmax import IMAGE_QUANT

FLOAT_OPERATION = FLOAT_BITS**2
"""Bit operations of one multiplication of two float32 numbers."""

AT_HIGH_RESOLUTION = ("upsampling", "reconstruction")
"""Stages that the three-map rule leaves out: it counts only maps at input resolution."""

VIEWS = ("getitem", "split", "chunk")
"""Functions whose result is a part of their argument, not a copy."""


@dataclass(frozen=True)
class Costs:
    """Costs of one frame.

    Attributes:
        macs: Multiplications.
        ops: Multiplications weighed by bit widths, in operations of 32 x 32 bits.
        bops: Multiplications weighed by bit widths, in bits.
        peak_memory: Bytes of feature maps by FQSR's rule.
        peak_memory_liveness: Bytes of feature maps by liveness in the whole graph.
    """

    macs: int
    ops: float
    bops: int
    peak_memory: int
    peak_memory_liveness: int


def costs(plan: QuantizationPlan, frame: tuple[int, int]) -> Costs:
    """Costs of one image of (width, height) low-resolution pixels."""
    graph = Sized(plan, frame)
    macs = {layer.node: graph.multiplications(layer.node) for layer in plan.traced.layers}
    bops = sum(count * graph.operand_bits(node) for node, count in macs.items())
    return Costs(sum(macs.values()), bops / FLOAT_OPERATION, bops, graph.three_maps(), graph.liveness())


class Sized:
    """A plan at one frame size."""

    def __init__(self, plan: QuantizationPlan, frame: tuple[int, int]) -> None:
        traced = plan.traced
        self.traced, self.output = traced, plan.policy.output
        self.shapes = traced.shapes(*map(traced.fitted, frame))
        self.nodes = nodes_by_name(traced.module)
        self.order = {node: number for number, node in enumerate(traced.module.graph.nodes)}
        self.bits = {site: self._executed_bits(site, plan) for site in traced.sites}
        self.at = {(site.node, site.index): site for site in traced.sites}
        self.group_of = self._shared_memory()

    @staticmethod
    def _executed_bits(site: Site, plan: QuantizationPlan) -> int:
        bits = format_at(site, plan.policy, plan.execution.integer_bits).bits
        return bits if bits <= plan.execution.integer_bits else FLOAT_BITS

    # ------------------------------------------------------------ operations

    def multiplications(self, layer: str) -> int:
        """Multiplications of one layer: its output values (input values, if transposed) times the kernel's share."""
        node = self.nodes[layer]
        weight = self.shapes[_name(node.args[1])]
        values = self.shapes[_name(node.args[0]) if node.target is F.conv_transpose2d else layer].numel()
        return values * weight[1:].numel()

    def operand_bits(self, layer: str) -> int:
        """Weight bits x feature map bits. The image, which no policy names, counts at the weight's width, at most 8."""
        node = self.nodes[layer]
        weight = next(self.bits[site] for site in self._weight_sites(_name(node.args[1])))
        source = self.at[layer, 0]
        if FLOAT_BITS in (weight, self.bits[source]):
            return FLOAT_OPERATION
        return weight * (min(weight, IMAGE_QUANT.bits) if source.role == "image" else self.bits[source])

    def _weight_sites(self, weight: str) -> Iterator[Site]:
        for site in self.traced.sites:
            if site.role == "weight" and _name(self.nodes[site.node].args[1]) == weight:
                yield site

    # ------------------------------------------------------------ memory

    def three_maps(self) -> int:
        """Bytes held at the largest sum or concatenation at input resolution: its operands and the skips that span it.

        In SRResNet these are the long skip, the short skip and the trunk: FQSR's three maps, at the width of the skips.
        Without any sum it is the largest feature map that a layer makes there.
        """
        edges = [site for site in self.traced.sites if site.role == "skip" and site.index is not None]
        read_at = {site: self.order[self.nodes[site.node]] for site in edges}
        tensors = {site: skip_edges(self.nodes[site.node])[site.index or 0] for site in edges}
        peak = 0
        for now in {read_at[site] for site in edges if site.stage not in AT_HIGH_RESOLUTION}:
            held: dict[fx.Node, int] = {}
            for site, tensor in tensors.items():
                if read_at[site] >= now > self.order[tensor]:
                    held[tensor] = max(held.get(tensor, 0), self.bits[site])
            peak = max(peak, sum(self._bytes(tensor, bits) for tensor, bits in held.items()))
        maps = [self.nodes[layer.node] for layer in self.traced.layers if layer.stage not in AT_HIGH_RESOLUTION]
        return peak or max((self._bytes(node, self._width(self.group_of[node])) for node in maps), default=0)

    def liveness(self) -> int:
        """Most bytes of tensors alive at once: an operation's operands, its result, and all tensors that later ones read.

        Activations work in place; pixel shuffles and slices are addressing. A tensor is as wide as its widest reader needs.
        Tensors that no site reads, such as a float output, are float32.
        """
        changes: dict[int, int] = {}
        for group in set(self.group_of.values()):
            size = max(self._bytes(node, self._width(group)) for node in group)
            places = [self.order[node] for node in group] + [self.order[user] for node in group for user in node.users]
            changes[min(places)] = changes.get(min(places), 0) + size
            changes[max(places) + 1] = changes.get(max(places) + 1, 0) - size
        return max(itertools.accumulate(change for _, change in sorted(changes.items())))

    def _shared_memory(self) -> dict[fx.Node, frozenset[fx.Node]]:
        """Node -> the nodes whose tensors share its memory, including itself."""
        groups: dict[fx.Node, set[fx.Node]] = {}
        for node in self.traced.module.graph.nodes:
            if node.op in ("get_attr", "output"):
                continue
            source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
            shared = groups[source] if source in groups and self._in_place(node, groups[source]) else set()
            shared.add(node)
            groups[node] = shared
        return {node: frozenset(group) for node, group in groups.items()}

    def _in_place(self, node: fx.Node, group: set[fx.Node]) -> bool:
        """Whether a node's result needs no memory besides that of its operand's group."""
        if getattr(node.target, "__name__", node.target) in VIEWS:
            return True
        alone = all(user is node or user in group for member in group for user in member.users)
        module, (source, *_) = self.traced.module, node.all_input_nodes
        shuffles = moves_pixels(module, node) and self.shapes[node.name].numel() == self.shapes[source.name].numel()
        return alone and (shuffles or is_activation(module, node))

    def _width(self, group: frozenset[fx.Node]) -> int:
        """Bits of a group's tensor: those of its widest reader; a node that only moves pixels passes on its own readers' bits."""
        widths = [self._wanted(node, user) for node in group for user in node.users if user not in group]
        return max(widths, default=FLOAT_BITS)

    def _wanted(self, tensor: fx.Node, reader: fx.Node) -> int:
        if moves_pixels(self.traced.module, reader):
            return self._width(self.group_of[reader])
        edges = skip_edges(reader) or reader.all_input_nodes
        if reader.op == "output" and self.output == "uint8":
            return IMAGE_QUANT.bits
        sites = [self.at.get((reader.name, index)) for index, edge in enumerate(edges) if edge is tensor]
        return max(FLOAT_BITS if site is None else self.bits[site] for site in sites)

    def map_bytes(self, node: fx.Node) -> int:
        """Bytes of the tensor that a node makes."""
        return self._bytes(node, self._width(self.group_of[node]))

    def _bytes(self, node: fx.Node, bits: int) -> int:
        return -(-self.shapes[node.name].numel() * bits // 8) if node.name in self.shapes else 0


def _name(node: object) -> str:
    assert isinstance(node, fx.Node)
    return node.name
