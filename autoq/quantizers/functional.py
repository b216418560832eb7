"""Arithmetic of uniform quantizers, with torch's fused kernels if available.

Integers q are in [qmin, qmax]; the real value is scale * (q - zero_point). A per-channel scale has one entry per slice of
dimension 0.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SMALLEST_SCALE = 1e-9
"""Lower bound of scales: a constant-zero tensor also needs a positive scale."""

LARGEST_SCALE = 1e33
"""Upper bound of scales: the sum of 2^16 steps must be finite in float32."""

Grid: TypeAlias = tuple[int, int, Tensor, Tensor]
"""(qmin, qmax, scale, zero_point)."""


def integer_range(bits: int, signed: bool) -> tuple[int, int]:
    """(qmin, qmax): symmetric [-(2^(b-1) - 1), 2^(b-1) - 1] when signed, else [0, 2^b - 1].

    The signed range omits -2^(b-1), so that it is symmetric.
    """
    if signed:
        top = 2 ** (bits - 1) - 1
        return -top, top
    return 0, 2**bits - 1


def shorten(scale: Tensor) -> Tensor:
    """Round positive float32 scales to 12 significant bits (relative change below 2.5e-4), with a straight-through gradient.

    255 * scale and the product of two scales are then exact in float32. A runtime that recomputes a scale from its range, or
    multiplies two scales, therefore gets the same number and rounds in the same way.
    """
    bits = scale.detach().float().view(torch.int32)
    short = ((bits + 0x800) & ~0xFFF).view(torch.float32)
    return scale + (short - scale.detach()) if scale.requires_grad else short


def positive(scale: Tensor) -> Tensor:
    """Clamp a scale to a positive, finite range and shorten it, as float32."""
    return shorten(scale.clamp(SMALLEST_SCALE, LARGEST_SCALE).float())


def affine_parameters(low: Tensor, high: Tensor, bits: int, signed: bool) -> tuple[Tensor, Tensor]:
    """Scale and zero point that cover [low, high] up to rounding, with zero exactly representable.

    Super-Resolution Model Quantized in Multi-Precision (Liu et al. 2021), equations 1-2: q = round(s x + z). The scale here
    is 1 / s, shortened.

    Args:
        low: Lower ends, [1] or [channels].
        high: Upper ends, same shape.
        bits: Bit width.
        signed: Whether the grid is symmetric.

    Returns:
        (scale float32, zero_point int32), same shape as `low`.
    """
    qmin, qmax = integer_range(bits, signed)
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    span = torch.maximum(-low, high) / qmax if signed else (high - low) / (qmax - qmin)
    scale = positive(span)
    zero_point = torch.zeros_like(scale) if signed else (-low / scale).round().clamp(qmin, qmax)
    return scale, zero_point.to(torch.int32)


def symmetric_grid(low: Tensor, high: Tensor, bits: int, signed: bool) -> Grid:
    """A grid with 2^(bits - 1) - 1 levels on each side of zero; unsigned formats shift it to start at integer 0."""
    qmin, qmax = integer_range(bits, signed=True)
    scale, zero_point = affine_parameters(low, high, bits, signed=True)
    shift = 0 if signed else qmax
    return qmin + shift, qmax + shift, scale, zero_point + shift


def positive_grid(high: Tensor, bits: int) -> Grid:
    """The grid of [0, high] with zero point 0; negative values become 0."""
    return *integer_range(bits, signed=False), *affine_parameters(torch.zeros_like(high), high, bits, signed=False)


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    """scale * (clamp(round(x / scale) + zero_point, qmin, qmax) - zero_point), ties to even.

    The gradient of x is straight-through inside the clipping range and zero outside; `scale` has no gradient.
    `scale` has one entry for the tensor, or one per slice of dimension 0.
    """
    if scale.numel() == 1:
        return torch.fake_quantize_per_tensor_affine(x, scale.reshape(()), zero_point.reshape(()), qmin, qmax)
    return torch.fake_quantize_per_channel_affine(x, scale, zero_point, 0, qmin, qmax)


def fake_quantize_learned(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, gradient_factor: float) -> Tensor:
    """`fake_quantize` with a gradient for the scale: LSQ (Esser et al. 2020), equations 2-3.

    d(output)/d(scale) = round(x/scale) - x/scale inside the range, qmin - zero_point below it and qmax - zero_point above
    it, summed over the elements of each scale and multiplied by `gradient_factor`.
    """
    zero_point = zero_point.to(scale.dtype)
    if not x.is_cuda:
        kernel = _LearnedPerTensor if scale.numel() == 1 else _LearnedPerSlice
        quantized: Tensor = kernel.apply(x, scale, zero_point, qmin, qmax, gradient_factor)  # type: ignore[no-untyped-call]
        return quantized
    if scale.numel() == 1:
        return torch._fake_quantize_learnable_per_tensor_affine(
            x, scale.reshape(1), zero_point.reshape(1), qmin, qmax, gradient_factor
        )
    return torch._fake_quantize_learnable_per_channel_affine(x, scale, zero_point, 0, qmin, qmax, gradient_factor)


class _LearnedPerTensor(torch.autograd.Function):
    """A vectorized version of torch's learnable per-tensor kernel, which is scalar on CPUs.

    Saves the values in units of the scale for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        qmin: int,
        qmax: int,
        gradient_factor: float,
    ) -> Tensor:
        step, zero = scale.item(), zero_point.item()
        units = x * (1.0 / scale.reshape(()))
        ctx.save_for_backward(units, scale, zero_point)
        ctx.ends = qmin - zero, qmax - zero  # type: ignore[attr-defined]
        ctx.gradient_factor = gradient_factor  # type: ignore[attr-defined]
        return units.round().clamp_(qmin - zero, qmax - zero).mul_(step)

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        units, scale, zero_point = ctx.saved_tensors  # type: ignore[attr-defined]
        low, high = ctx.ends  # type: ignore[attr-defined]
        factor: float = ctx.gradient_factor  # type: ignore[attr-defined]
        gradient = laid_out_as(gradients[0], units)
        # no gradient for values half a step outside the range, which can round to either side
        passed = torch.ops.aten.hardtanh_backward(gradient, units, low - 0.5, high + 0.5)
        kept = units.round().clamp_(low, high)
        outside = torch.dot(in_memory_order(gradient - passed), in_memory_order(kept))
        # subtract before summing: the separate sums would be hundreds of times larger than their difference
        inside = torch.dot(in_memory_order(passed), in_memory_order(kept.sub_(units)))
        to_scale = (inside + outside) * factor
        to_zero = None
        if ctx.needs_input_grad[2]:  # type: ignore[attr-defined]
            to_zero = ((passed.sum() - gradient.sum()) * scale.reshape(()) * factor).reshape(zero_point.shape)
        return passed, to_scale.reshape(scale.shape), to_zero, None, None, None


class _LearnedPerSlice(torch.autograd.Function):
    """A vectorized version of torch's learnable per-channel kernel, for one scale per slice of dimension 0."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        qmin: int,
        qmax: int,
        gradient_factor: float,
    ) -> Tensor:
        zero = per_slice(zero_point, x)
        units = x * (1.0 / per_slice(scale, x))
        rounded = units.round()
        kept = torch.clamp(rounded, qmin - zero, qmax - zero)
        ctx.save_for_backward(units, rounded == kept, kept, scale)
        ctx.gradient_factor = gradient_factor  # type: ignore[attr-defined]
        return kept * per_slice(scale, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        units, inside, kept, scale = ctx.saved_tensors  # type: ignore[attr-defined]
        factor: float = ctx.gradient_factor  # type: ignore[attr-defined]
        passed = gradients[0] * inside
        others = tuple(range(1, units.dim()))
        to_scale = (gradients[0] * torch.where(inside, kept - units, kept)).sum(others) * factor
        to_zero = None
        if ctx.needs_input_grad[2]:  # type: ignore[attr-defined]
            to_zero = (passed - gradients[0]).sum(others) * scale * factor
        return passed, to_scale, to_zero, None, None, None


def laid_out_as(x: Tensor, other: Tensor) -> Tensor:
    """`x` in the memory layout of another dense tensor of the same shape."""
    return x if x.stride() == other.stride() else torch.empty_like(other, dtype=x.dtype).copy_(x)


def in_memory_order(x: Tensor) -> Tensor:
    """The values of a dense tensor as a vector in memory order, without a copy."""
    return x.as_strided((x.numel(),), (1,))


def quantize_affine(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    """Quantize to integers in float32: clamp(round(x / scale + zero_point), qmin, qmax), ties to even, without gradient.

    Liu et al. 2021, equation 1. The zero point is added before rounding in one fused multiply-add, as in integer runtimes
    that define a quantizer by its range. `fake_quantize` rounds first; results differ only if x is within a float32 rounding
    error of the midpoint between two levels.
    """
    scale, zero_point = per_slice(scale.detach(), x), per_slice(zero_point, x)
    factor = 1.0 / scale
    return _multiply_add(x, factor, (zero_point * scale) * factor).round_().clamp_(qmin, qmax)


def _multiply_add(x: Tensor, factor: Tensor, shift: Tensor) -> Tensor:
    """x * factor + shift with a single rounding to float32, like a fused multiply-add instruction."""
    return x.detach().double().mul_(factor.double()).add_(shift.double()).float()


def dequantize_affine(q: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Dequantize: scale * (q - zero_point), float32, same shape as `q`."""
    return (q - per_slice(zero_point, q)) * per_slice(scale.detach(), q)


def per_slice(parameter: Tensor, x: Tensor) -> Tensor:
    """Reshape a scalar, or one entry per slice of dimension 0, to broadcast over `x`."""
    return parameter.reshape((-1,) + (1,) * (x.dim() - 1)) if parameter.numel() > 1 else parameter.reshape(())


def straight_through(value: Tensor, x: Tensor) -> Tensor:
    """`value` with the gradient of `x` (straight-through estimator, Bengio et al. 2013)."""
    return value.detach() + (x - x.detach())


def round_ste(x: Tensor) -> Tensor:
    """Round to the nearest integer, ties to even, with a straight-through gradient (Bengio et al. 2013)."""
    return x + (torch.round(x) - x).detach()
