"""The end of a training, towards originals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from autoq.config.policy import uniform
from autoq.config.spec import TrialSpec
from autoq.graph.quantize import Quantized
from autoq.images.data import Image, Pair, make_pair, original_patches
from autoq.networks import model_info
from autoq.training.originals import RATE, OriginalsTraining
from autoq.training.qat import LEARNING_RATES
from autoq.trial.context import TrialContext, prepare

STEPS = 4


@pytest.fixture(scope="module")
def context() -> TrialContext:
    return prepare(TrialSpec(model="espcn", scale=3, steps=STEPS, batch=8, patches=40, sampling="uniform"))


@pytest.fixture
def quantized(context: TrialContext) -> Quantized:
    return context.quantized(uniform("8/8/8", model_info("espcn").stages, "lsq"))


def training_on(context: TrialContext, quantized: Quantized, pairs: Sequence[Pair]) -> OriginalsTraining:
    return OriginalsTraining(context, pairs, quantized, 1e-3)


def test_originals_are_of_the_patches(context: TrialContext) -> None:
    originals = original_patches(context.train_pairs, context.plan, 3)
    assert (originals.shape, originals.dtype) == (context.teacher.shape, torch.uint8)
    reduced = torch.nn.functional.avg_pool2d(originals / 255, 3)
    correlations = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(reduced.numpy(), context.patches.numpy(), strict=True)]
    assert min(correlations) > 0.5
    assert np.median(correlations) > 0.98


def test_patches_are_twice_as_large_where_most_images_are(context: TrialContext, quantized: Quantized) -> None:
    small, large = (
        make_pair(Image(str(side), np.zeros((3 * side, 3 * side, 3), np.uint8)), 3)
        for side in (context.plan.side, 2 * context.plan.side)
    )
    data = training_on(context, quantized, [small, large, large]).data
    assert (data.plan.side, data.plan.batch, data.plan.pool) == (2 * context.plan.side, 2, 2 * STEPS)
    assert data.patches.shape == (2 * STEPS, 3, data.plan.side, data.plan.side)
    assert data.teacher.shape == (2 * STEPS, 3, 3 * data.plan.side, 3 * data.plan.side)
    data = training_on(context, quantized, [small, small, large]).data
    assert (data.plan.side, data.plan.batch) == (context.plan.side, context.plan.batch)


def test_the_loss_is_ten_times_the_squared_error_to_the_originals(context: TrialContext, quantized: Quantized) -> None:
    training = training_on(context, quantized, context.train_pairs)
    chosen = torch.tensor([5, 2])
    outputs = torch.rand(2, *training.data.teacher.shape[1:], generator=torch.Generator().manual_seed(1))
    originals = training.data.teacher[chosen].double().numpy() / 255
    expected = 10 * np.square(outputs.double().numpy() - originals).mean()
    assert training.loss(outputs, chosen).item() == pytest.approx(expected, rel=1e-5)


def test_it_learns_slowly_and_changes_no_quantizer_step_by_step(context: TrialContext, quantized: Quantized) -> None:
    training = training_on(context, quantized, context.train_pairs)
    training.advance(1)
    rates = dict(zip(training.rates, (group["lr"] for group in training.optimizer.param_groups), strict=True))
    assert rates.keys() == {1e-3, *LEARNING_RATES.values()}
    for rate, found in rates.items():
        assert found == pytest.approx(rate * RATE)
    assert {quantizer.progress for quantizer in training.quantizers} == {1.0}
