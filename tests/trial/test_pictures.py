"""Crops of finetuned networks: the worst squares, in the right places of the picture."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from autoq.config.spec import TrialSpec
from autoq.images.data import Pair
from autoq.trial.context import TrialContext, prepare
from autoq.trial.pictures import GAP, SIDE, comparison


@pytest.fixture(scope="module")
def context() -> TrialContext:
    """Two evaluation images, one of them smaller than a crop, with what the float network made of them."""
    context = prepare(TrialSpec(model="espcn", scale=3, steps=1, batch=1, patches=1))
    sizes = {"large": (150, 200), "small": (60, 80)}
    random = np.random.default_rng(0)
    images = {name: random.integers(0, 256, (*size, 3), dtype=np.uint8) for name, size in sizes.items()}
    pairs = tuple(Pair(name, image, image[::3, ::3]) for name, image in images.items())
    return dataclasses.replace(context, pairs=pairs, float_outputs=tuple(image // 2 for image in images.values()))


def test_the_worst_square_of_each_image_stands_beside_floats(context: TrialContext) -> None:
    large, small = (image.copy() for image in context.float_outputs)
    large[40, 150] += 100
    small[5, 5] += 10
    picture = comparison(context, [large, small])
    assert picture.shape == (SIDE + GAP + 60, 3 * SIDE + 2 * GAP, 3)
    original, exact, output = (picture[:SIDE, start : start + SIDE] for start in (0, SIDE + GAP, 2 * (SIDE + GAP)))
    assert (original // 2 == exact).all()
    (changed,) = np.argwhere((output != exact).any(2))
    assert (output[tuple(changed)] == exact[tuple(changed)] + 100).all()
    assert (picture[:SIDE, SIDE : SIDE + GAP] == 255).all()
    below = picture[SIDE + GAP :]
    assert (below[:, 60 + GAP : 120 + GAP] == context.float_outputs[1][:, :60]).all()
    assert (below[5, 2 * (60 + GAP) + 5] == small[5, 5]).all()
    assert (below[:, 3 * 60 + 2 * GAP :] == 255).all()


def test_without_originals_there_are_two_columns(context: TrialContext) -> None:
    blind = dataclasses.replace(context, pairs=tuple(dataclasses.replace(pair, high=None) for pair in context.pairs))
    assert comparison(blind, context.float_outputs).shape[1] == 2 * SIDE + GAP
