"""Which images a network takes: what their sides must be a multiple of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from autoq.errors import InputError

MULTIPLES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 24, 32, 48, 64)
"""What the sides of an image may have to be a multiple of."""

LEAST_SIDES = (16, 64)
"""Of the images that a network is tried on, input pixels: some need more than a few."""

UNTRACEABLE = (fx.proxy.TraceError, TypeError, RuntimeError, ValueError, LookupError, AttributeError, AssertionError, NameError)
"""What a forward raises that an image, or fx, does not suit."""


class Fitting(NamedTuple):
    """Images that a network takes, random and of different sizes. multiple: of what their sides are multiples."""

    multiple: int
    images: tuple[Tensor, Tensor]


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _fittings() -> Iterator[Fitting]:
    """Two images whose sides have no other common divisor than each multiple: of 17x18 and 19x18 pixels, first."""
    random = torch.Generator().manual_seed(0)
    for multiple in MULTIPLES:
        for side in LEAST_SIDES:
            least = side // multiple + 1
            shapes = ((least, least + 1), (least + 2, least + 1))
            one, two = (torch.rand(1, 3, high * multiple, wide * multiple, generator=random) for high, wide in shapes)
            yield Fitting(multiple, (one, two))


@torch.no_grad()
def fitting(network: nn.Module) -> Fitting:
    """The least multiple for which a network, in eval mode, gives its images larger by a whole scale, and two such images.

    Where it does so for none, the least for which it runs. Raises InputError where it runs on no image, or gives something else.
    """
    runs: list[Fitting] = []
    reason = ""
    for found in _fittings():
        image, other = found.images
        try:
            output = network(image.clone())
            network(other.clone())
        except UNTRACEABLE as error:
            reason = reason or one_line(error)
            continue
        if not isinstance(output, Tensor):
            given = type(output).__name__
            raise InputError(f"model {type(network).__name__}: its forward gives a {given}, expected one image; return that alone")
        if output.dim() == image.dim() and _whole_scale(image, output):
            return found
        runs.append(found)
    if not runs:
        raise InputError(f"model {type(network).__name__}: RGB images of 17x18 to 128x192 pixels raised {reason}")
    return runs[0]


def _whole_scale(image: Tensor, output: Tensor) -> bool:
    (height, width), (high, wide) = image.shape[2:], output.shape[2:]
    return high % height == 0 and wide % width == 0 and high // height == wide // width
