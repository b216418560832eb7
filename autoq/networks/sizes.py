"""Find the image sizes that a network accepts: the number that height and width must be multiples of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from autoq.errors import InputError

MULTIPLES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 24, 32, 48, 64)
"""Candidates for that number."""

LEAST_SIDES = (16, 64)
"""Minimum sides of the trial images in pixels; some networks need larger images."""

UNTRACEABLE = (fx.proxy.TraceError, TypeError, RuntimeError, ValueError, LookupError, AttributeError, AssertionError, NameError)
"""Exceptions of a forward that does not support an image size or tracing."""


class Fitting(NamedTuple):
    """Two random images of different sizes whose sides are multiples of `multiple`."""

    multiple: int
    images: tuple[Tensor, Tensor]


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _fittings() -> Iterator[Fitting]:
    """Two images for every multiple, which is the greatest common divisor of their sides; first 17x18 and 19x18 pixels."""
    random = torch.Generator().manual_seed(0)
    for multiple in MULTIPLES:
        for side in LEAST_SIDES:
            units = side // multiple + 1
            shapes = ((units, units + 1), (units + 2, units + 1))
            one, two = (torch.rand(1, 3, high * multiple, wide * multiple, generator=random) for high, wide in shapes)
            yield Fitting(multiple, (one, two))


@torch.no_grad()
def fitting(network: nn.Module) -> Fitting:
    """The smallest multiple for which a network in eval mode upscales its images by an integer scale, and two such images.

    If there is none, the smallest multiple for which the network runs.

    Raises:
        InputError: The network runs on no image, or its output is not a tensor.
    """
    runs: list[Fitting] = []
    reason = ""
    for candidate in _fittings():
        image, other = candidate.images
        try:
            output = network(image.clone())
            network(other.clone())
        except UNTRACEABLE as error:
            reason = reason or one_line(error)
            continue
        if not isinstance(output, Tensor):
            given = type(output).__name__
            raise InputError(
                f"model {type(network).__name__}: forward returns a {given}, expected one image; return only the image"
            )
        if output.dim() == image.dim() and _has_integer_scale(image, output):
            return candidate
        runs.append(candidate)
    if not runs:
        raise InputError(
            f"model {type(network).__name__}: forward fails on RGB images of 17x18 to 128x192 pixels: {reason}; give a network of"
            " RGB images"
        )
    return runs[0]


def _has_integer_scale(image: Tensor, output: Tensor) -> bool:
    (height, width), (high, wide) = image.shape[2:], output.shape[2:]
    return high % height == 0 and wide % width == 0 and high // height == wide // width
