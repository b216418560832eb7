"""Losses of a finetuning worked in numpy."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch

from autoq.config.options import LossName
from autoq.config.policy import uniform
from autoq.config.spec import TrialSpec
from autoq.graph.trace import computing, stage_ends
from autoq.networks import model_info
from autoq.training.losses import LOSSES, SECOND
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


def test_texture_is_differences_of_neighbours_or_magnitudes_of_frequencies(context: TrialContext, training: Training) -> None:
    images = [outputs(context).double().numpy(), context.teacher[CHOSEN].double().numpy()]
    plain = np.abs(images[0] - images[1]).mean()
    rows, columns = (np.abs(np.diff(images[0], axis=axis) - np.diff(images[1], axis=axis)) for axis in (2, 3))
    differences = (rows.sum() + columns.sum()) / (rows.size + columns.size)
    spectra = [np.abs(np.fft.rfft2(image, norm="ortho")) for image in images]
    magnitudes = np.abs(spectra[0] - spectra[1]).mean()
    for name, texture in (("output", 0.0), ("gradient", differences), ("frequency", magnitudes)):
        loss = LOSSES[name](training)
        assert loss(outputs(context), CHOSEN).item() == pytest.approx(plain + SECOND * texture, rel=1e-5)
    moved = outputs(context).roll(5, dims=3)
    assert LOSSES["frequency"](training)(moved, CHOSEN) > 0


def test_features_are_maps_of_the_stages_ends(context: TrialContext, training: Training) -> None:
    """Worked in numpy from tensors that a forward pass of each network leaves behind."""
    names = stage_ends(context.traced)
    assert len(names) == len(model_info("espcn").stages) - 1
    loss = LOSSES["features"](training)
    outputs = training.network(context.patches[CHOSEN])
    module = training.quantized.module
    sources = {placed.placement.source: placed.quantizer for placed in training.quantized.placed}
    read: dict[str, torch.Tensor] = {}
    for name in names:
        module.get_submodule(sources[name]).register_forward_pre_hook(lambda _, inputs, name=name: read.update({name: inputs[0]}))
    training.network(context.patches[CHOSEN])
    with torch.no_grad():
        exact = computing(context.traced, names)(context.patches[CHOSEN])
    distances = []
    for name, tensor in zip(names, exact, strict=True):
        maps = [np.square(each.detach().double().numpy()).sum(1).reshape(2, -1) for each in (read[name], tensor)]
        one, other = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in maps)
        distances.append(np.linalg.norm(one - other, axis=1).mean())
    plain = training.distance(outputs, CHOSEN).item()
    assert loss(outputs, CHOSEN).item() == pytest.approx(plain + SECOND * np.mean(distances), rel=1e-4)
    assert min(distances) > 0
