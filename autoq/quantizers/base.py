"""What every quantizer is: a module that maps a tensor onto an integer grid, and can name the grid."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from autoq.config.policy import TensorQuant
from autoq.quantizers import functional

MOST_BIAS = 2.0**30
"""Magnitude of int32 biases before training; twice as much is left for what training changes."""

INT32 = 2.0**31 - 128
"""The largest int32 that is a float32."""


class Quantizer(nn.Module, ABC):
    """Fake quantization of one tensor.

    scale: float32, one entry (or one per channel); zero_point: int32, same shape; integers in [qmin, qmax]. axis: the
    dimension of the channels. progress: the share of the training that is done; the training sets it. Subclasses define
    `simulate`, which sees the channels in dimension 0, and where they differ: `start`, the grid before training; `scale`
    and `zero_point`, where learned; `observe`, where the grid follows the tensor; `_integers`, where levels are not uniform.
    """

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
        """A scale that leaves room for a bias, see `make_room`."""
        return scale if self.least_scale is None else torch.maximum(scale, self.least_scale)

    def make_room(self, bias: Tensor, activation_scale: Tensor) -> None:
        """Keep scales of a weight so large that a layer's bias [channels], in units of scale_activation x scale_weight, is far
        within int32: where pruning left no weights in a channel they would be next to nothing.
        """
        needed = (bias.detach().abs() / activation_scale / MOST_BIAS).reshape(-1, self.initial_scale.numel()).amax(0)
        if (needed > self.scale).any():
            power_of_two = torch.exp2(torch.log2(needed.clamp(min=functional.SMALLEST_SCALE)).ceil())
            self.least_scale = self.at_least(power_of_two)

    @property
    def zero_point(self) -> Tensor:
        return self.initial_zero_point

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantized `x`, float32, same shape: with gradients in training mode, as integer runtimes round in eval mode."""
        x = x.float().transpose(0, self.axis)
        self.observe(x)
        found = self.simulate(x) if self.training else self._quantized(x)
        return found.transpose(0, self.axis)

    def _quantized(self, x: Tensor) -> Tensor:
        return functional.dequantize_affine(self._integers(x), self.scale, self.zero_point)

    def observe(self, x: Tensor) -> None:
        """Set the grid by the tensor about to be quantized, where the method says so; else nothing."""

    @abstractmethod
    def simulate(self, x: Tensor) -> Tensor:
        """The differentiable forward pass of training."""

    def to_integer(self, x: Tensor) -> Tensor:
        """The integers of `x`, int32, same shape."""
        x = x.float().transpose(0, self.axis)
        self.observe(x)
        return self._integers(x).transpose(0, self.axis).to(torch.int32)

    def _integers(self, x: Tensor) -> Tensor:
        return functional.quantize_affine(x, self.scale, self.zero_point, self.qmin, self.qmax)

    def extra_repr(self) -> str:
        return f"{self.quant.bits} bits, {self.quant.clipping}, per {self.quant.granularity}"


class LearnedScale(Quantizer):
    """A quantizer whose scale is trained with the network.

    The scale is kept as initial_scale * exp(log_gain): one learning rate suits scales of any magnitude, and it stays
    positive.
    """

    def __init__(self, quant: TensorQuant, low: Tensor, high: Tensor) -> None:
        super().__init__(quant, low, high)
        self.log_gain = nn.Parameter(torch.zeros_like(self.initial_scale))

    @property
    def scale(self) -> Tensor:
        return self.at_least(functional.shorten(self.initial_scale * self.log_gain.exp()))


class Float16(nn.Module):
    """Storage as IEEE half precision: what 16 bits mean on a target that has no 16-bit integers."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (x.half().float() - x).detach()


class BiasQuantizer(nn.Module):
    """Biases as int32 at scale_activation x scale_weight, as integer convolutions add them.

    channels: of the layer's output; in groups of a transposed convolution the scales of the weight repeat.
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
