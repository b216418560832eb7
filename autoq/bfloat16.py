"""Where a runtime that computes in bfloat16 rounds to it: what it stores, and what its float layers read."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch.nn.functional as F
from torch import Tensor, fx, nn

from autoq.quantize import insert_behind, quantizer_of
from autoq.tracing import CONCATENATIONS, is_activation, moves_pixels, skip_edges

ALWAYS = {F.conv2d, F.linear}
LAYERS = {*ALWAYS, F.conv_transpose2d}
"""Layers, and those that compute in bfloat16 wherever they are."""


class BFloat16(nn.Module):
    """A tensor as the processor stores it, or reads it, that multiplies bfloat16 and sums in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return x.bfloat16().float()


def round_as_stored(module: fx.GraphModule, integer_layers: Iterable[str]) -> None:
    """Round the float tensors of a quantized graph that leave the registers, and what float layers read, biases included.

    As OpenVINO does it: what alone reads a result, an activation or a quantizer, is computed in one go with it and gets float32.
    So is a sum with the first layer it adds, where nothing else reads that one and nothing later reads the other operand. What
    comes behind the last convolutions, a transposed one too, is in float32.
    """
    on_integers = set(integer_layers)
    exact = _last(module)
    layers = {node for node in module.graph.nodes if node.target in LAYERS} - exact
    in_float = {node for node in layers if node.name not in on_integers}
    stored = [
        node
        for node in _computed_from_images(module)
        if node not in exact
        and not moves_pixels(module, node)
        and node.target not in CONCATENATIONS
        and quantizer_of(module, node) is None
        and not _goes_on(module, node, in_float)
    ]
    for node in stored:
        _round(module, node, list(node.users))
    for layer in sorted(in_float):
        for source in layer.all_input_nodes:
            if not _is_rounded(module, source):
                _round(module, source, [layer])


def _computed_from_images(module: fx.GraphModule) -> list[fx.Node]:
    """In order; weights and what is made of them are not."""
    found: dict[fx.Node, None] = {}
    for node in module.graph.nodes:
        if node.op.startswith("call") and any(each.op == "placeholder" or each in found for each in node.all_input_nodes):
            found[node] = None
    return list(found)


def _last(module: fx.GraphModule) -> set[fx.Node]:
    """What computes the output from the results of the last convolutions; a transposed one, too."""
    found = _before(next(iter(module.graph.find_nodes(op="output"))), ALWAYS)
    return {node for node in found if node.target not in ALWAYS}


def _round(module: fx.GraphModule, source: fx.Node, readers: list[fx.Node]) -> None:
    path = f"rounded.{source.name}_{readers[0].name}"
    module.add_submodule(path, BFloat16())
    rounded = insert_behind(module, source, path)
    for reader in readers:
        reader.replace_input_with(source, rounded)


def stored_by(module: fx.GraphModule, node: fx.Node) -> BFloat16 | None:
    """What rounded a tensor as it was stored, if it was."""
    found = module.get_submodule(str(node.target)) if node.op == "call_module" else None
    return found if isinstance(found, BFloat16) else None


def _is_rounded(module: fx.GraphModule, node: fx.Node) -> bool:
    while moves_pixels(module, node):
        node = node.all_input_nodes[0]
    return stored_by(module, node) is not None


def _goes_on(module: fx.GraphModule, node: fx.Node, in_float: set[fx.Node]) -> bool:
    """Whether a float result is used in the registers and never stored."""
    if len(node.users) != 1:
        return False
    (reader,) = node.users
    if skip_edges(reader) and reader.target not in CONCATENATIONS:
        return _added_to(module, reader, in_float) is node
    return is_activation(module, reader) or quantizer_of(module, reader) is not None


def _added_to(module: fx.GraphModule, total: fx.Node, in_float: set[fx.Node]) -> fx.Node | None:
    """The operand of a sum in whose layer's accumulators the other one is added, if any."""
    operands = skip_edges(total)
    for operand, other in (operands, operands[::-1]):
        layer = operand
        if is_activation(module, operand) and len(operand.all_input_nodes[0].users) == 1:
            layer = operand.all_input_nodes[0]
        if layer.target not in LAYERS:
            continue
        mixed = layer in in_float and quantizer_of(module, other) is not None
        read_later = set(other.users) - {total} - _before(total)
        return operand if len(operand.users) == 1 and not mixed and not read_later else None
    return None


def _before(node: fx.Node, until: Collection[object] = ()) -> set[fx.Node]:
    """All that a node depends on; of nodes with a target in `until` not what these depend on."""
    found: set[fx.Node] = set()
    left = [node]
    while left:
        new = set(left.pop().all_input_nodes) - found
        found |= new
        left += [each for each in new if each.target not in until]
    return found
