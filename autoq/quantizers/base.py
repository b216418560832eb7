"""Base classes of quantizers: modules that map a tensor onto an integer grid given by scale and zero point."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from autoq.config.policy import TensorQuant
from autoq.quantizers import functional

MOST_BIAS = 2.0**30
"""Largest magnitude of int32 biases before training; the remaining factor of 2 is a margin for training."""

INT32 = 2.0**31 - 128
"""The largest int32 that float32 represents exactly."""


class Quantizer(nn.Module, ABC):
    """Fake quantization of one tensor.

    Subclasses define `simulate`, which receives channels in dimension 0. They can override `start` (the grid before training),
    `scale` and `zero_point` (if learned), `observe` (if the grid follows the tensor) and `_integers` (for non-uniform levels).

    Attributes:
        scale: float32, [1] or [channels].
        zero_point: int32, same shape as `scale`.
        qmin: Lower end of the integer range.
        qmax: Upper end of the integer range.
        axis: Dimension of the channels.
        elementwise: Whether every value is rounded by itself, to a grid that does not follow the tensor.
        progress: Completed share of the training, set by the training.
    """

    elementwise: ClassVar[bool] = True
    initial_scale: Tensor
    initial_zero_point: Tensor
    least_scale: Tensor | None

    def __init__(self, quant: TensorQuant, low: Tensor, high: Tensor) -> None:
        super().__init__()
        self.quant, self.axis, self.progress = quant, 0, 0.0
        self.qmin, self.qmax, scale, zero_point = self.start(low, high)
        self.register_buffer("initial_scale", scale)
        self.register_buffer("initial_zero_point", zero_point)
        self.register_buffer("least_scale", None)

    def start(self, low: Tensor, high: Tensor) -> functional.Grid:
        """The grid that covers [low, high]: symmetric when signed, else affine."""
        quant = self.quant
        return *functional.integer_range(quant.bits, quant.signed), *functional.affine_parameters(
            low, high, quant.bits, quant.signed
        )

    @property
    def scale(self) -> Tensor:
        return self.at_least(self.initial_scale)

    def at_least(self, scale: Tensor) -> Tensor:
        """A scale no smaller than the bound of `make_room`."""
        return scale if self.least_scale is None else torch.maximum(scale, self.least_scale)

    def make_room(self, bias: Tensor, activation_scale: Tensor) -> None:
        """Bound a weight's scales from below so that a layer's bias [channels] fits int32 in units of scale_activation x
        scale_weight. This matters for channels whose weights were pruned, which have almost zero scales.
        """
        needed = (bias.detach().abs() / activation_scale / MOST_BIAS).reshape(-1, self.initial_scale.numel()).amax(0)
        if (needed > self.scale).any():
            power_of_two = torch.exp2(torch.log2(needed.clamp(min=functional.SMALLEST_SCALE)).ceil())
            self.least_scale = self.at_least(power_of_two)

    @property
    def zero_point(self) -> Tensor:
        return self.initial_zero_point

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantize `x` to float32 of the same shape: differentiable in training mode, rounded as integer runtimes do in
        eval mode.
        """
        x = x.float().transpose(0, self.axis)
        self.observe(x)
        quantized = self.simulate(x) if self.training else self._quantized(x)
        return quantized.transpose(0, self.axis)

    def _quantized(self, x: Tensor) -> Tensor:
        return functional.dequantize_affine(self._integers(x), self.scale, self.zero_point)

    def observe(self, x: Tensor) -> None:
        """Update the grid from the tensor to be quantized, if the method requires it."""

    @abstractmethod
    def simulate(self, x: Tensor) -> Tensor:
        """The differentiable forward pass in training."""

    def to_integer(self, x: Tensor) -> Tensor:
        """Quantize `x` to int32 of the same shape."""
        x = x.float().transpose(0, self.axis)
        self.observe(x)
        return self._integers(x).transpose(0, self.axis).to(torch.int32)

    def _integers(self, x: Tensor) -> Tensor:
        return functional.quantize_affine(x, self.scale, self.zero_point, self.qmin, self.qmax)

    def extra_repr(self) -> str:
        return f"{self.quant.bits} bits, {self.quant.clipping}, per {self.quant.granularity}"


class LearnedScale(Quantizer):
    """A quantizer with a trained scale.

    The scale is initial_scale * exp(log_gain), so it stays positive and one learning rate fits scales of any magnitude.
    """

    def __init__(self, quant: TensorQuant, low: Tensor, high: Tensor) -> None:
        super().__init__(quant, low, high)
        self.log_gain = nn.Parameter(torch.zeros_like(self.initial_scale))

    @property
    def scale(self) -> Tensor:
        return self.at_least(functional.shorten(self.initial_scale * self.log_gain.exp()))


class Float16(nn.Module):
    """Storage in IEEE half precision, used for 16 bits on targets without 16-bit integers."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (x.half().float() - x).detach()


class BiasQuantizer(nn.Module):
    """Quantizes biases to int32 at scale_activation x scale_weight, as added by integer convolutions.

    Args:
        activation: Quantizer of the layer's input.
        weight: Quantizer of the layer's weight. For a grouped transposed convolution its scales repeat per group.
        channels: Output channels of the layer.
    """

    def __init__(self, activation: Quantizer, weight: Quantizer, channels: int) -> None:
        super().__init__()
        self._sources = (activation, weight)  # a tuple, so that they are not registered twice
        self.channels = channels

    @property
    def scale(self) -> Tensor:
        activation, weight = self._sources
        with torch.no_grad():
            scale = activation.scale * weight.scale
            return scale if scale.numel() == 1 else scale.repeat(self.channels // scale.numel())

    def forward(self, bias: Tensor) -> Tensor:
        scale = self.scale
        return functional.round_ste(bias / scale).clamp(-INT32, INT32) * scale

    def to_integer(self, bias: Tensor) -> Tensor:
        return torch.round(bias.detach() / self.scale).clamp(-INT32, INT32).to(torch.int32)
