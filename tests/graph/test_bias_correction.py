"""Bias correction: what quantization adds to a layer's mean is taken from its bias."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from autoq.config.policy import Policy, uniform
from autoq.config.spec import TrialSpec
from autoq.graph.bias_correction import channel_means, correct_biases
from autoq.graph.quantize import Execution, Quantized, collect, quantize
from autoq.graph.trace import Traced, trace
from autoq.networks import build_model, model_info
from autoq.trial.context import prepare
from autoq.trial.run import trained
from tests.conftest import small_image

IMAGES = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def quantized(traced: Traced, policy: Policy) -> Quantized:
    return quantize(traced, policy, collect(traced, [IMAGES]), Execution(8, True))


def means(network: nn.Module) -> Tensor:
    """Channel means of the output."""
    with torch.no_grad():
        output: Tensor = network(IMAGES)
        return output.mean((0, 2, 3))


def test_correction_takes_the_error_out_of_every_mean() -> None:
    traced = trace(build_model("espcn", 3), model_info("espcn").patterns)
    network = quantized(traced, uniform("3/8/8", model_info("espcn").stages))
    before = (means(network.module.eval()) - means(traced.module)).abs().max()
    network.module.train()
    correct_biases(network, channel_means(traced, IMAGES), IMAGES)
    assert network.module.training, "it is left as it was"
    assert (means(network.module.eval()) - means(traced.module)).abs().max() < 0.1 * before


def test_a_trial_without_training_is_corrected_and_one_with_it_is_not(tmp_path: Path) -> None:
    spec = TrialSpec(
        model="espcn", scale=3, steps=0, data=small_image(tmp_path / "train", 0), eval_data=small_image(tmp_path / "eval", 1),
        test_data=small_image(tmp_path / "test", 2),
    )  # fmt: skip
    policy = uniform("3/3/8", model_info("espcn").stages)
    for steps, corrected in ((0, True), (4, False)):
        context = prepare(spec.model_copy(update={"steps": steps}))
        made, plain = trained(context, policy, 0).module.state_dict(), context.quantized(policy).module.state_dict()
        assert any(not torch.equal(made[name], plain[name]) for name in made) is corrected
