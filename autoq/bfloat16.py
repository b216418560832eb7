"""Where a runtime that computes in bfloat16 rounds to it: what it stores, and what its float layers read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import torch.nn.functional as F
from torch import Tensor, fx, nn

from autoq.quantize import insert_behind, quantizer_of
from autoq.tracing import CONCATENATIONS, LAYER_FUNCTIONS, PRODUCTS, SUMS, is_activation, moves_pixels, skip_edges


class BFloat16(nn.Module):
    """A tensor as the processor stores it, or reads it, that multiplies bfloat16 and sums in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return x.bfloat16().float()


def round_as_stored(module: fx.GraphModule, integer_layers: Iterable[str]) -> None:
    """Round the float tensors of a quantized graph that leave the registers, and what float layers read, biases included.

    As OpenVINO does it:

    - What alone reads a result, an activation or a quantizer, is computed in one go with it and gets float32; so does a sum or
      product with the first element-wise operation it reads, unless that reads the other operand, too.
    - So is a sum with a convolution it adds, unless something else reads that one, something later reads the other operand, or
      the convolution does. A convolution in float has no activation in between, and the other operand is no integer.
    - What comes behind the last layers and resized images is in float32; of transposed convolutions they themselves.
    """
    on_integers = set(integer_layers)
    tail = _float32_tail(module)
    layers = {node for node in module.graph.nodes if node.target in LAYER_FUNCTIONS} - tail
    in_float = {node for node in layers if node.name not in on_integers}
    registers = _Registers(module, in_float)
    resized = [node for node in module.graph.nodes if _resizes(module, node)]
    stored = [
        node
        for node in module.graph.nodes
        if (node in layers or _is_element_wise(module, node) or node in resized)
        and node.users
        and node not in tail
        and not moves_pixels(module, node)
        and not registers.keep(node)
    ]
    for node in stored:
        _round(module, node, list(node.users))
    for layer in sorted(in_float):
        for source in layer.all_input_nodes:
            if not _is_rounded(module, source):
                _round(module, source, [layer])
    for node in resized:
        if node.all_input_nodes[0].op == "placeholder":
            _round(module, node.all_input_nodes[0], [node])


def storage_of(module: fx.GraphModule, node: fx.Node) -> BFloat16 | None:
    """What rounded a tensor as it was stored, if it was."""
    found = module.get_submodule(str(node.target)) if node.op == "call_module" else None
    return found if isinstance(found, BFloat16) else None


def _round(module: fx.GraphModule, source: fx.Node, readers: list[fx.Node]) -> None:
    path = f"rounded.{source.name}_{readers[0].name}"
    module.add_submodule(path, BFloat16())
    rounded = insert_behind(module, source, path)
    for reader in readers:
        reader.replace_input_with(source, rounded)


def _is_rounded(module: fx.GraphModule, node: fx.Node) -> bool:
    while moves_pixels(module, node):
        node = node.all_input_nodes[0]
    return storage_of(module, node) is not None


def _float32_tail(module: fx.GraphModule) -> set[fx.Node]:
    """What computes the output from the results of the last layers and of resizing; transposed convolutions, too."""

    def ends(node: fx.Node) -> bool:
        return node.target in (F.conv2d, F.linear) or _resizes(module, node)

    (output,) = module.graph.find_nodes(op="output")
    return {node for node in _before(output, ends) if not ends(node)}


def _resizes(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(module.get_submodule(str(node.target)), nn.Upsample)
    return node.target is F.interpolate


def _is_element_wise(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node computes a float value of values at the same place."""
    if node.op == "placeholder" or quantizer_of(module, node) is not None:
        return False
    return node.target in SUMS | PRODUCTS or is_activation(module, node)


class _Registers:
    """What OpenVINO computes in one go. in_float: the layers that compute in bfloat16."""

    def __init__(self, module: fx.GraphModule, in_float: Collection[fx.Node]) -> None:
        self.module, self.in_float = module, in_float

    def keep(self, node: fx.Node) -> bool:
        """Whether a result is used as it is computed, and never stored."""
        if len(node.users) != 1:
            return False
        (reader,) = node.users
        if quantizer_of(self.module, reader) is not None or (_is_element_wise(self.module, reader) and _tensors(reader) == 1):
            return not _resizes(self.module, node)
        return node in (self._added_to(reader), self._computed_with(reader))

    def _computed_with(self, node: fx.Node) -> fx.Node | None:
        """The element-wise operand that a sum or product is computed with: the first that reads nothing else of its."""
        if not _is_element_wise(self.module, node) or self._added_to(node) is not None:
            return None
        for operand in node.all_input_nodes:
            alone = _is_element_wise(self.module, operand) and len(operand.users) == 1 and not self._ends_a_layer(operand)
            if alone and not self._read_with(operand).intersection(node.all_input_nodes):
                return operand
        return None

    def _read_with(self, node: fx.Node) -> set[fx.Node]:
        """What an element-wise operation reads, and what is computed in one go with it."""
        own = set(node.all_input_nodes)
        within = self._computed_with(node)
        return own if within is None else own | self._read_with(within)

    def _ends_a_layer(self, node: fx.Node) -> bool:
        """Whether a node is a layer, or computed in one go with one."""
        if self._added_to(node) is not None:
            return True
        if is_activation(self.module, node) and len(node.all_input_nodes[0].users) == 1:
            return self._ends_a_layer(node.all_input_nodes[0])
        return not _is_element_wise(self.module, node)

    def _added_to(self, total: fx.Node) -> fx.Node | None:
        """The operand of a sum in whose convolution's accumulators the other one is added, if any."""
        if not _is_sum(total):
            return None
        operands = skip_edges(total)
        for operand, other in (operands, operands[::-1]):
            layer = operand
            if is_activation(self.module, operand) and len(operand.all_input_nodes[0].users) == 1:
                layer = operand.all_input_nodes[0]
            if layer.target is not F.conv2d or len(operand.users) != 1 or operand is other or other in layer.all_input_nodes:
                continue
            if layer in self.in_float and (layer is not operand or quantizer_of(self.module, other) is not None):
                continue
            if set(other.users) - {total} <= _before(total):
                return operand
        return None


def _tensors(node: fx.Node) -> int:
    return sum(isinstance(each, fx.Node) and each.op != "get_attr" for each in node.args)


def _is_sum(node: fx.Node) -> bool:
    return bool(skip_edges(node)) and node.target not in CONCATENATIONS


def _before(node: fx.Node, until: Callable[[fx.Node], bool] = lambda _: False) -> set[fx.Node]:
    """All that a node depends on; not what those depend on that `until` holds for."""
    found: set[fx.Node] = set()
    left = [node]
    while left:
        new = set(left.pop().all_input_nodes) - found
        found |= new
        left += [each for each in new if not until(each)]
    return found
