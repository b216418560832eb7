"""SQCL, the self-supervised quantization-aware calibration loss of FQSR."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from autoq.quantizers.base import Quantizer


class CalibrationLoss:
    """SQCL: L_q = ||Q(v) - v||_1, summed over all quantizers while a network runs (Wang et al. 2021, equation 8).

    The paper does not define the weighting of tensors of different sizes. As in the authors' code, each quantizer contributes
    the mean over the elements of its tensor: weights, inputs of layers, and outputs if the policy quantizes them. No gradient
    is detached: with the straight-through estimator the gradients of Q(v) and v cancel unless v is clipped, so L_q moves the
    learned ranges, and clipped values towards them.

    Use as a context manager: losses are collected only inside it.
    """

    def __init__(self, quantizers: Iterable[Quantizer]) -> None:
        self.quantizers = list(quantizers)
        self._losses: list[Tensor] = []
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> CalibrationLoss:
        self._handles = [quantizer.register_forward_hook(self._listen) for quantizer in self.quantizers]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()
        self._losses.clear()

    def _listen(self, quantizer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._losses.append((output - inputs[0].float()).abs().mean())

    def taken(self) -> Tensor:
        """Return the sum of the losses since the last call, a scalar."""
        total = sum(self._losses[1:], self._losses[0])
        self._losses.clear()
        return total
