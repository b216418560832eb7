"""FQSR's calibration loss against equation 8 worked in numpy, and what it does to a training."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from autoq.config.policy import TensorQuant, uniform
from autoq.config.spec import TrialSpec
from autoq.networks import model_info
from autoq.quantizers import make_quantizer
from autoq.quantizers.base import Quantizer
from autoq.quantizers.range_estimators import Statistics
from autoq.training.qat import Training
from autoq.training.sqcl import CalibrationLoss
from autoq.trial.context import TrialContext, prepare
from tests.conftest import simulated

LEARNED = uniform("3/3/8", model_info("espcn").stages, "lsq")
STEPS = 60


@pytest.fixture(scope="module")
def context() -> TrialContext:
    return prepare(TrialSpec(model="espcn", scale=3, steps=STEPS, batch=2, patches=40))


def quantizer(bits: int, high: float) -> Quantizer:
    """Signed, of the range [-high, high]."""
    made = make_quantizer(TensorQuant(bits, "lsq", signed=True), Statistics.of_tensor(torch.tensor([-high, high]), False))
    return made.train()


def test_it_is_equation_8_of_every_quantizer_by_the_mean_of_its_elements() -> None:
    small, large = torch.randn(7, generator=torch.Generator().manual_seed(1)), torch.linspace(-3, 3, 1000)
    quantizers = [quantizer(3, 1.0), quantizer(4, 2.0)]
    with CalibrationLoss(quantizers) as loss:
        for each, x in zip(quantizers, (small, large), strict=True):
            each(x)
        found = loss.taken()
    expected = 0.0
    for each, x in zip(quantizers, (small, large), strict=True):
        v, scale = x.double().numpy(), each.scale.item()
        expected += np.abs(scale * np.clip(np.rint(v / scale), each.qmin, each.qmax) - v).mean()
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_its_gradients_pull_clipped_values_in_and_fit_the_range() -> None:
    each, x = quantizer(3, 1.0), torch.tensor([0.1, 0.5, -0.8, 2.0, -5.0], requires_grad=True)
    with CalibrationLoss([each]) as loss:
        each(x)
        loss.taken().backward()
    # straight through, Q(v) and v move together inside the range; outside only v moves
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), [0, 0, 0, 1 / 5, -1 / 5], atol=1e-7)


def test_nobody_listens_outside_and_a_training_can_be_copied(context: TrialContext) -> None:
    context = with_weight(context, 0.3)
    training = Training(context, context.quantized(LEARNED))
    training.advance(2)
    assert all(not each._forward_hooks for each in training.quantizers)
    assert np.isfinite(simulated(training.quantized, context.patches[:1])).all()


def test_training_with_it_leaves_less_error_in_the_quantizers(context: TrialContext) -> None:
    left = {}
    for weight in (0.0, 30.0):
        training = Training(with_weight(context, weight), context.quantized(LEARNED))
        training.advance(STEPS)
        with CalibrationLoss(training.quantizers) as loss, torch.no_grad():
            training.module(context.patches[:8])
            left[weight] = loss.taken().item()
    assert left[30.0] < 0.98 * left[0.0]


def with_weight(context: TrialContext, weight: float) -> TrialContext:
    return dataclasses.replace(context, spec=context.spec.model_copy(update={"sqcl": weight}))
