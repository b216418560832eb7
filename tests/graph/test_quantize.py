import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autoq.config.policy import uniform
from autoq.errors import InputError, PolicyError
from autoq.graph.quantize import Execution, QuantizationPlan, collect, quantize
from autoq.graph.trace import Traced, roles_by_stage, trace
from autoq.networks import build_model, model_info
from autoq.networks.srresnet import SRResNet
from autoq.quantizers.base import Quantizer
from tests.conftest import simulated

INT8 = Execution(integer_bits=8, fused_sums=True)
INFO = model_info("srgan")


def quantized(traced: Traced, bits: str, execution: Execution = INT8, **names: str):
    return quantize(traced, uniform(bits, INFO.stages, **names), collect(traced, [torch.rand(1, 3, 16, 16)]), execution)


@pytest.mark.parametrize("name", ["srresnet", "srgan"])
def test_traced_network_equals_the_eager_one(name: str) -> None:
    model = build_model(name, 4)
    image = torch.rand(1, 3, 17, 23)
    with torch.no_grad():
        torch.testing.assert_close(trace(model, INFO.patterns).module(image), model(image), rtol=0, atol=1e-5)


def test_batch_norms_are_gone_and_pixel_shuffles_come_last(tiny_traced: Traced) -> None:
    kinds = [type(module).__name__ for module in tiny_traced.module.modules()]
    assert "BatchNorm2d" not in kinds
    order = [str(node.target) for node in tiny_traced.module.graph.nodes if node.op == "call_module"]
    assert order[-2:] == ["up.2", "up.1"]  # PReLU, then the shuffle


def test_sites_of_the_residual_network(tiny_traced: Traced) -> None:
    assert roles_by_stage(tiny_traced.sites) == {stage: tuple(roles) for stage, roles in INFO.stages.items()}
    found = {site.name: (site.stage, site.role) for site in tiny_traced.sites}
    assert found["head_0.0"] == ("feature_extraction", "image")
    assert found["up_0.0"] == ("upsampling", "activation")
    # both sums and all three edges of each belong to the trunk's stage
    sums = [name for name, (stage, role) in found.items() if role == "skip" and stage == "body"]
    assert sorted(sums) == ["add.0", "add.1", "add.output", "add_1.0", "add_1.1", "add_1.output"]


class Branches(nn.Module):
    """A concatenation, a sum of two layers, a shared convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.shared = nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.first(x))
        b = self.shared(a)
        c = self.shared(b) + b
        return self.last(torch.cat([a, c], 1))


def test_concatenations_and_shared_layers() -> None:
    model = Branches().eval()
    traced = trace(model, {"one": ("first", "shared"), "two": ("last",)})
    names = [site.name for site in traced.sites]
    assert "cat.0" in names
    assert "cat.1" in names
    assert "cat.output" not in names
    weights = [site for site in traced.sites if site.role == "weight"]
    assert len(weights) == 3, "a layer called twice has one weight"
    policy = uniform("8/8/8", {"one": ("weight", "activation", "skip"), "two": ("weight", "activation")})
    image = torch.rand(1, 3, 12, 12)
    network = quantize(traced, policy, collect(traced, [image]), Execution())
    assert len(network.integer_layers) == 4
    with torch.no_grad():
        expected = model(image).numpy()
    assert np.mean((simulated(network, image) - expected) ** 2) < 1e-3


def test_a_layer_outside_every_stage_is_an_error() -> None:
    with pytest.raises(InputError, match="layer 'last' is in no stage, expected exactly one stage"):
        trace(Branches(), {"one": ("first", "shared")})
    with pytest.raises(InputError, match=r"stage 'two': pattern 'tail' matches no layer \(layers: first, shared, last\)"):
        trace(Branches(), {"one": ("first", "shared", "last"), "two": ("tail",)})


def test_an_untraceable_model_is_an_error() -> None:
    class Loop(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(InputError, match=r"model Loop: torch\.fx cannot trace it"):
        trace(Loop(), {})


def test_float_policy_changes_nothing(tiny_traced: Traced) -> None:
    network = quantized(tiny_traced, "32/32/32")
    image = torch.rand(1, 3, 9, 11)
    assert network.placed == []
    with torch.no_grad():
        np.testing.assert_array_equal(simulated(network, image), tiny_traced.module(image).numpy())


def test_sixteen_bits_are_half_precision_storage_and_a_float_layer(tiny_traced: Traced) -> None:
    network = quantized(tiny_traced, "16/8/32")
    assert network.integer_layers == ()
    kinds = {type(network.module.get_submodule(placed.quantizer)).__name__ for placed in network.placed}
    assert kinds == {"Float16"}
    assert len(quantized(tiny_traced, "16/8/32", Execution(integer_bits=16)).integer_layers) == 6


def test_all_integer_policy_leaves_no_layer_in_float(tiny_traced: Traced) -> None:
    network = quantized(tiny_traced, "8/8/8")
    assert list(network.integer_layers) == [layer.node for layer in tiny_traced.layers]


def test_an_edge_in_the_same_format_is_not_quantized_twice(tiny_traced: Traced) -> None:
    policy = uniform("8/8/8", INFO.stages)
    shared = QuantizationPlan(tiny_traced, policy, INT8).placements
    separate = QuantizationPlan(tiny_traced, uniform("8/4/8", INFO.stages), INT8).placements
    assert len(separate) > len(shared)
    long_sum = [placement for placement in shared if placement.source == "add_1"]
    # the body's own output and the upsampling layer's input: two stages, two quantizers
    assert [[site.name for site in placement.sites] for placement in long_sum] == [["add_1.output"], ["up_0.0"]]


def test_a_fused_operand_is_not_rounded(tiny_traced: Traced) -> None:
    policy = uniform("8/8/8", INFO.stages)
    fused = {site.name for placement in QuantizationPlan(tiny_traced, policy, INT8).placements for site in placement.sites}
    apart = {
        site.name for placement in QuantizationPlan(tiny_traced, policy, Execution(8, False)).placements for site in placement.sites
    }
    assert apart - fused == {"add.1", "add_1.1"}


def test_quantizers_of_one_network_do_not_leak_into_another(tiny_traced: Traced) -> None:
    before = {name: parameter.clone() for name, parameter in tiny_traced.module.named_parameters()}
    network = quantized(tiny_traced, "4/4/8", quantizer="lsq")
    for parameter in network.module.parameters():
        parameter.data.add_(1.0)
    for name, parameter in tiny_traced.module.named_parameters():
        torch.testing.assert_close(parameter, before[name], rtol=0, atol=0)
    assert not any(isinstance(module, Quantizer) for module in tiny_traced.module.modules())


def test_x2_has_one_pixel_shuffle() -> None:
    assert SRResNet(scale=2, blocks=1)(torch.rand(1, 3, 8, 8)).shape == (1, 3, 16, 16)


def test_a_quantizer_that_is_not_for_a_role_is_an_error(tiny_traced: Traced) -> None:
    with pytest.raises(PolicyError, match="quantizer 'pact' supports unsigned activations and skips, not weights; give one of"):
        quantized(tiny_traced, "8/8/8", quantizer="pact")
    with pytest.raises(
        PolicyError, match="quantizer 'dorefa' supports weights of up to 7 bits on targets with 8-bit integers, given 8"
    ):
        quantized(tiny_traced, "8/8/8", quantizer="dorefa")


def test_calibration_names_the_tensor_that_is_not_finite(tiny_traced: Traced) -> None:
    image = torch.rand(1, 3, 16, 16)
    with pytest.raises(InputError, match="calibration: tensor 'head_1' of the float network contains NaN or infinity"):
        collect(tiny_traced, [image, torch.where(image > 0.9, torch.nan, image)])
    broken = copy.deepcopy(tiny_traced)
    broken.module.get_parameter("up.0.weight").data[0, 0, 0, 0] = torch.nan
    with pytest.raises(InputError, match=r"calibration: .* of the float network contains NaN or infinity"):
        collect(broken, [image])


def test_samples_come_from_all_over_a_tensor(tiny_traced: Traced) -> None:
    """A picture that is bright only off its left edge: the sample must have seen it."""
    image = torch.zeros(8, 3, 24, 24)
    image[:, :, :, 12:] = 1.0
    sums = collect(tiny_traced, [image])
    values = sums["head_1"].sample
    with torch.no_grad():
        activations = dict(tiny_traced.module.named_modules())["head.1"](dict(tiny_traced.module.named_modules())["head.0"](image))
    assert values.mean().item() == pytest.approx(activations.mean().item(), abs=0.05 * activations.std().item())
    assert values.std().item() == pytest.approx(activations.std().item(), rel=0.05)
