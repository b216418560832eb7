"""Losses of a finetuning worked in numpy."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch

from autoq.config.options import LossName
from autoq.config.policy import uniform
from autoq.config.spec import TrialSpec
from autoq.images.data import original_patches
from autoq.networks import model_info
from autoq.training.losses import LOSSES, TEXTURE
from autoq.training.qat import Training
from autoq.trial.context import TrialContext, prepare

STEPS = 60
CHOSEN = torch.tensor([5, 2])


@pytest.fixture(scope="module")
def context() -> TrialContext:
    return prepare(TrialSpec(model="espcn", scale=3, steps=STEPS, batch=2, patches=40, sampling="uniform"))


@pytest.fixture
def training(context: TrialContext) -> Training:
    return Training(context, context.quantized(uniform("4/4/8", model_info("espcn").stages, "lsq")))


def outputs(context: TrialContext) -> torch.Tensor:
    """Outputs that a network could have for the chosen patches."""
    return torch.rand(2, *context.teacher.shape[1:], generator=torch.Generator().manual_seed(1))


def test_every_loss_has_a_name_for_options() -> None:
    assert (*LOSSES,) == get_args(LossName)


def test_originals_take_the_place_of_the_teacher_towards_the_end(context: TrialContext, training: Training) -> None:
    loss = LOSSES["originals"](training, context.train_pairs)
    found = outputs(context).double().numpy()
    teacher = context.teacher[CHOSEN].double().numpy()
    original = original_patches(context.train_pairs, context.plan, 3)[CHOSEN].double().numpy() / 255
    for progress, share in ((0, 0.0), (0.6, 0.0), (0.65, 0.25), (0.8, 1.0), (1, 1.0)):
        training.step = round(progress * STEPS)
        expected = (1 - share) * np.abs(found - teacher).mean() + share * 10 * np.square(found - original).mean()
        assert loss(outputs(context), CHOSEN).item() == pytest.approx(expected, rel=1e-5)


def test_originals_are_of_the_patches(context: TrialContext) -> None:
    originals = original_patches(context.train_pairs, context.plan, 3)
    assert (originals.shape, originals.dtype) == (context.teacher.shape, torch.uint8)
    reduced = torch.nn.functional.avg_pool2d(originals / 255, 3)
    correlations = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(reduced.numpy(), context.patches.numpy(), strict=True)]
    assert min(correlations) > 0.5
    assert np.median(correlations) > 0.98


def test_texture_is_differences_of_neighbours_or_magnitudes_of_frequencies(context: TrialContext, training: Training) -> None:
    images = [outputs(context).double().numpy(), context.teacher[CHOSEN].double().numpy()]
    plain = np.abs(images[0] - images[1]).mean()
    rows, columns = (np.abs(np.diff(images[0], axis=axis) - np.diff(images[1], axis=axis)) for axis in (2, 3))
    differences = (rows.sum() + columns.sum()) / (rows.size + columns.size)
    spectra = [np.abs(np.fft.rfft2(image, norm="ortho")) for image in images]
    magnitudes = np.abs(spectra[0] - spectra[1]).mean()
    for name, texture in (("output", 0.0), ("gradient", differences), ("frequency", magnitudes)):
        loss = LOSSES[name](training, context.train_pairs)
        assert loss(outputs(context), CHOSEN).item() == pytest.approx(plain + TEXTURE * texture, rel=1e-5)
    moved = outputs(context).roll(5, dims=3)
    assert LOSSES["frequency"](training, ())(moved, CHOSEN) > 0
