"""Precision of a training."""

from __future__ import annotations

import pytest
import torch

from autoq.config.policy import uniform
from autoq.config.spec import TrialSpec
from autoq.networks import model_info
from autoq.training import qat
from autoq.training.qat import Training
from autoq.trial.context import TrialContext, prepare
from tests.conftest import small_image


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> TrialContext:
    folder = tmp_path_factory.mktemp("images")
    images = {name: small_image(folder / name, seed) for seed, name in enumerate(("data", "eval_data", "test_data"))}
    return prepare(TrialSpec(model="espcn", scale=3, steps=3, batch=1, patches=3, **images))


@pytest.mark.parametrize(
    ("bits", "exact", "expected"),
    [("8/8/8", True, [True, False, False]), ("8/8/8", False, [True] * 3), ("2/2/8", True, [True] * 3)],
)
def test_a_nearly_exact_network_trains_in_float32_where_that_is_asked(
    context: TrialContext, monkeypatch: pytest.MonkeyPatch, bits: str, exact: bool, expected: list[bool]
) -> None:
    """The first step shows how exact it is."""
    monkeypatch.setattr(qat, "native_bfloat16", lambda device: True)
    quantized = context.quantized(uniform(bits, model_info("espcn").stages))
    training, seen = Training(context, quantized, exact=exact), list[bool]()
    network = training.network

    def watched(inputs: torch.Tensor) -> torch.Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        output: torch.Tensor = network(inputs)
        return output

    training.__dict__["network"] = watched
    training.advance(3)
    assert seen == expected
