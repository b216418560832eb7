"""What a search optimizes where nobody says."""

from __future__ import annotations

import pytest

from autoq.config.spec import TrialSpec
from autoq.networks import MODELS
from autoq.tuning.options import default_objectives

TRAINED_FOR_LOOKS = {"srgan", "esrgan", "esrgan-6"}


@pytest.mark.parametrize("model", MODELS)
def test_only_networks_trained_for_pixels_are_judged_by_psnr(model: str) -> None:
    quality = "fidelity" if model in TRAINED_FOR_LOOKS else "psnr"
    assert default_objectives(TrialSpec(model=model)) == ("size", "latency", quality)
    assert default_objectives(TrialSpec(model=model, images="lr")) == ("size", "latency", "fidelity"), "there are no originals"


@pytest.mark.parametrize("model", ["mynet:make", "nets/mynet.py:make", "trained.pth"])
def test_of_a_user_s_network_nobody_knows_what_it_was_trained_for(model: str) -> None:
    assert default_objectives(TrialSpec(model=model)) == ("size", "latency", "fidelity")


def test_a_target_without_a_latency_counts_operations() -> None:
    assert default_objectives(TrialSpec(model="srgan", target="bits")) == ("size", "bops", "fidelity")
    assert default_objectives(TrialSpec(model="xlsr", target="bits")) == ("size", "bops", "psnr")
