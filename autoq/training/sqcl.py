"""The self-supervised quantization-aware calibration loss of FQSR."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from autoq.quantizers.base import Quantizer


class CalibrationLoss:
    """SQCL: L_q = ||Q(v) - v||_1 of every quantizer (Wang et al. 2021, equation 8), collected while a network runs.

    The paper leaves open how tensors of different sizes are weighed. Here, as in the authors' published code, a quantizer's
    share is the mean over the elements of its tensor, and the shares of all quantizers are added: weights, inputs of
    layers, and outputs where the policy quantizes them. No gradient is cut off: by the straight-through estimator those
    of Q(v) and of v cancel where v is not clipped, so L_q moves the learned ranges, and clipped values towards them.

    Used as a context: quantizers are listened to only inside it.
    """

    def __init__(self, quantizers: Iterable[Quantizer]) -> None:
        self.quantizers = list(quantizers)
        self._shares: list[Tensor] = []
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> CalibrationLoss:
        self._handles = [quantizer.register_forward_hook(self._listen) for quantizer in self.quantizers]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()
        self._shares.clear()

    def _listen(self, quantizer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._shares.append((output - inputs[0].float()).abs().mean())

    def taken(self) -> Tensor:
        """The sum of the shares since it was last taken, a scalar."""
        total = sum(self._shares[1:], self._shares[0])
        self._shares.clear()
        return total
