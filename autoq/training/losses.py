"""What a training minimizes: the distance of the outputs to the float network's, and what else may count."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from torch import Tensor, nn


class OutputLoss:
    """L1 between the outputs and the float network's outputs for the same patches.

    Use as a context manager while the network runs. `distance` is the last value.

    Args:
        teacher: The float network's outputs [pool, 3, height, width].
    """

    def __init__(self, teacher: Tensor) -> None:
        self.teacher = teacher

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def __call__(self, outputs: Tensor, chosen: Tensor) -> Tensor:
        """The loss of outputs for patches with these indices, a scalar."""
        return nn.functional.l1_loss(outputs.float(), self.teacher[chosen])


class MixedLoss(OutputLoss):
    """`OutputLoss` and L1 to the originals, with the weights 1 - `share` and `share`.

    Args:
        teacher: As in `OutputLoss`.
        originals: uint8 [pool, 3, height, width].
        share: From 0 to 1.
    """

    def __init__(self, teacher: Tensor, originals: Tensor, share: float) -> None:
        super().__init__(teacher)
        self.originals, self.share = originals, share

    def __call__(self, outputs: Tensor, chosen: Tensor) -> Tensor:
        distance = super().__call__(outputs, chosen)
        error = nn.functional.l1_loss(outputs.float(), self.originals[chosen].float() / 255)
        return (1 - self.share) * distance + self.share * error
