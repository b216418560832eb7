"""A trained fake-quantized network computed as integer runtimes do: what evaluation and export agree on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, fx, nn

from autoq.bfloat16 import round_as_stored, storage_of
from autoq.quantize import Quantized, operand_quantizers, quantizer_of
from autoq.quantizers.base import Quantizer
from autoq.quantizers.functional import dequantize_affine, quantize_sum
from autoq.tracing import nodes_by_name, skip_edges


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
        sums = self.function(self.activation.steps(x), self.weight.steps(weight), None, *self.options)
        if sums.is_cuda:  # its fast algorithms do not sum exactly, but to well within a half
            sums = torch.round(sums)
        shape = (1, -1) + (1,) * (sums.dim() - 2)
        result = sums * (activation_scale * weight_scale).reshape(shape)
        return result if bias is None else result + bias.reshape(shape)


class IntegerSum(nn.Module):
    """A sum of an integer tensor and a layer's result, quantized: see `functional.quantize_sum`.

    stored: how the layer's result is kept until it is added.
    """

    def __init__(self, operand: Quantizer, output: Quantizer, stored: nn.Module) -> None:
        super().__init__()
        self.operand, self.output_quantizer, self.stored = operand, output, stored

    def forward(self, operand: Tensor, addend: Tensor) -> Tensor:
        scale, zero_point = self.output_quantizer.scale, self.output_quantizer.zero_point
        integers = quantize_sum(
            operand,
            addend,
            self.operand.scale,
            self.operand.zero_point,
            scale,
            zero_point,
            self.output_quantizer.qmin,
            self.output_quantizer.qmax,
            self.stored,
        )
        return dequantize_affine(integers, scale, zero_point)


def as_executed(quantized: Quantized) -> fx.GraphModule:
    """The trained network with its integer layers and sums computed as integer runtimes do: what evaluation and export agree on."""
    module = copy.deepcopy(quantized.module).eval()
    if quantized.bfloat16:
        round_as_stored(module, quantized.integer_layers)
    for placed in quantized.placed:
        if placed.placement.sites[0].index is None:
            _execute_sum(module, placed.quantizer)
    nodes = nodes_by_name(module)
    for name in quantized.integer_layers:
        node = nodes[name]
        activation, weight = operand_quantizers(module, node)
        path = f"integer_{name}"
        module.add_submodule(path, IntegerLayer(cast(Callable[..., Tensor], node.target), node.args[3:], activation, weight))
        node.op, node.target, node.args = "call_module", path, node.args[:3]
    module.graph.lint()
    module.recompile()
    return module


def _execute_sum(module: fx.GraphModule, path: str) -> None:
    """Merge a sum and the quantizer at `path` behind it, where one operand of the sum is on a grid and the other is not."""
    (output,) = module.graph.find_nodes(op="call_module", target=path)
    total = output.args[0]
    quantizers = [quantizer_of(module, operand) for operand in skip_edges(total)]
    if sum(quantizer is not None for quantizer in quantizers) != 1:
        return
    which = 0 if quantizers[0] is not None else 1
    operand, addend = skip_edges(total)[which], skip_edges(total)[1 - which]
    target = f"sum_{total.name}"
    own, of_output = quantizers[which], quantizer_of(module, output)
    assert own is not None
    assert of_output is not None
    stored = storage_of(module, addend)
    module.add_submodule(target, IntegerSum(own, of_output, stored or nn.Identity()))
    output.target, output.args = target, (operand, addend.all_input_nodes[0] if stored else addend)
    for unread in (total, addend):
        if not unread.users:
            module.graph.erase_node(unread)  # in place, it would still be executed
