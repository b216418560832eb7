"""Bytes of the packed package."""

from __future__ import annotations

import torch

from autoq.config.policy import TensorQuant
from autoq.graph.quantize import QuantizationPlan
from autoq.graph.trace import channel_axis

SCALE_BYTES, ZERO_POINT_BYTES, FLOAT_BYTES, HALF_BYTES = 4, 1, 4, 2


def packed_bytes(plan: QuantizationPlan) -> int:
    """Bytes of the tensors of the packed package.

    Every weight counts at its own width, packed per tensor and rounded up to bytes; scales 4 bytes, zero points 1, biases 4,
    float16 weights 2 bytes a value, other tensors their stored width. BN is folded; indices are part of the graph.
    """
    traced = plan.traced
    constants = {node.name: node for node in traced.module.graph.nodes if node.op == "get_attr"}
    weights = {
        str(constants[placement.source].target): (placement.quant, channel_axis(constants[placement.source]))
        for placement in plan.placements
        if placement.source in constants
    }
    total = sum(constant.nbytes for constant in traced.module.buffers() if constant.dtype != torch.int64)
    for name, parameter in traced.module.named_parameters():
        quant, axis = weights.get(name, (None, 0))
        channels = parameter.shape[axis] if parameter.dim() else 1
        total += _tensor_bytes(parameter.numel(), channels, quant, plan.execution.integer_bits)
    for placement in plan.placements:
        if placement.source not in constants:
            total += SCALE_BYTES + (0 if placement.quant.signed else ZERO_POINT_BYTES)
    return total


def _tensor_bytes(values: int, channels: int, quant: TensorQuant | None, integer_bits: int) -> int:
    if quant is None:
        return values * FLOAT_BYTES  # a float tensor, or an int32 bias of the same width
    if quant.bits > integer_bits:
        return values * HALF_BYTES
    scales = channels if quant.granularity == "channel" else 1
    zero_points = 0 if quant.signed else scales
    return -(-values * quant.bits // 8) + scales * SCALE_BYTES + zero_points * ZERO_POINT_BYTES
