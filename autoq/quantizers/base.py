"""What every quantizer is: a module that maps a tensor onto an integer grid, and can name the grid."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from autoq.policy import TensorQuant
from autoq.quantizers import functional


class Quantizer(nn.Module, ABC):
    """Fake quantization of one tensor.

    scale: float32, one entry (or one per channel); zero_point: int32, same shape; integers in [qmin, qmax]. axis: the
    dimension of the channels. Subclasses define `simulate`, which sees the channels in dimension 0, and, where the scale
    is learned, `scale`.
    """

    initial_scale: Tensor
    zero_point: Tensor

    def __init__(self, quant: TensorQuant, low: Tensor, high: Tensor) -> None:
        super().__init__()
        self.quant, self.axis = quant, 0
        self.qmin, self.qmax = functional.integer_range(quant.bits, quant.signed)
        scale, zero_point = functional.affine_parameters(low, high, quant.bits, quant.signed)
        self.register_buffer("initial_scale", scale)
        self.register_buffer("zero_point", zero_point)

    @property
    def scale(self) -> Tensor:
        return self.initial_scale

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantized `x`, float32, same shape: with gradients in training mode, as integer runtimes round in eval mode."""
        x = x.float().transpose(0, self.axis)
        found = self.simulate(x) if self.training else self._as_executed(x)
        return found.transpose(0, self.axis)

    def _as_executed(self, x: Tensor) -> Tensor:
        return functional.dequantize_affine(self._integers(x), self.scale, self.zero_point)

    @abstractmethod
    def simulate(self, x: Tensor) -> Tensor:
        """The differentiable forward pass of training."""

    def to_integer(self, x: Tensor) -> Tensor:
        """The integers of `x`, int32, same shape."""
        return self._integers(x.transpose(0, self.axis)).transpose(0, self.axis).to(torch.int32)

    def steps(self, x: Tensor) -> Tensor:
        """Quantized values `x` in units of the scale, the zero point being zero: float32 that holds integers."""
        x = x.transpose(0, self.axis)
        return torch.round(x / functional.per_slice(self.scale, x)).transpose(0, self.axis)

    def _integers(self, x: Tensor) -> Tensor:
        return functional.quantize_affine(x, self.scale, self.zero_point, self.qmin, self.qmax)

    def extra_repr(self) -> str:
        return f"{self.quant.bits} bits, {self.quant.clipping}, per {self.quant.granularity}"


class Float16(nn.Module):
    """Storage as IEEE half precision: what 16 bits mean on a target that has no 16-bit integers."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (x.half().float() - x).detach()


class BiasQuantizer(nn.Module):
    """Biases as int32 at scale_activation x scale_weight, as integer convolutions add them."""

    def __init__(self, activation: Quantizer, weight: Quantizer) -> None:
        super().__init__()
        self._sources = (activation, weight)  # a tuple, so that they are not registered twice

    @property
    def scale(self) -> Tensor:
        activation, weight = self._sources
        return (activation.scale * weight.scale).detach()

    def forward(self, bias: Tensor) -> Tensor:
        scale = self.scale
        return functional.round_ste(bias / scale) * scale

    def to_integer(self, bias: Tensor) -> Tensor:
        return torch.round(bias.detach() / self.scale).to(torch.int32)
