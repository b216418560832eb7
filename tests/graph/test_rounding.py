"""GPTQ: weights on their grids whose errors cancel in the layers' outputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from autoq.config.policy import TensorQuant, uniform
from autoq.graph.quantize import Execution, Quantized, collect, quantize
from autoq.graph.rounding import DAMPING, Curvature, curvatures, round_weights, rounded
from autoq.graph.trace import trace
from autoq.quantizers import make_quantizer
from autoq.quantizers.range_estimators import Statistics

IMAGES = torch.rand(4, 3, 24, 24, generator=torch.Generator().manual_seed(0))


def correlated(inputs: int, samples: int) -> Tensor:
    """Inputs [inputs, samples] of which each resembles its neighbours."""
    random = torch.Generator().manual_seed(1)
    return torch.randn(inputs, samples, generator=random).cumsum(0) + torch.randn(inputs, samples, generator=random)


def by_the_book(weight: np.ndarray, columns: np.ndarray, scale: np.ndarray, most: int) -> np.ndarray:
    """Algorithm 1 without blocks in float64, by the equation of optimal brain quantization: H^-1 loses a row and column a step."""
    hessian = columns @ columns.T
    order = np.argsort(-np.diag(hessian), kind="stable")
    hessian = hessian[order][:, order] + DAMPING * np.diag(hessian).mean() * np.eye(len(hessian))
    rest, inverse = weight[:, order].copy(), np.linalg.inv(hessian)
    for _ in range(len(order)):
        column = len(order) - len(inverse)
        level = np.clip(np.rint(rest[:, column] / scale), -most - 1, most) * scale
        error = (rest[:, column] - level) / inverse[0, 0]
        rest[:, column:] -= np.outer(error, inverse[0])
        rest[:, column] = level
        inverse = inverse[1:, 1:] - np.outer(inverse[1:, 0], inverse[0, 1:]) / inverse[0, 0]
    found = np.empty_like(rest)
    found[:, order] = rest
    return found


@pytest.mark.parametrize("bits", [3, 8])
def test_it_is_the_published_algorithm(bits: int) -> None:
    weight = torch.randn(5, 10, 3, 3, generator=torch.Generator().manual_seed(2))
    columns = correlated(90, 2000)
    quantizer = make_quantizer(TensorQuant(bits, "minmax", "minmax", "channel", True), Statistics.of_tensor(weight, True)).eval()
    found = rounded(weight, Curvature.of(columns), quantizer)
    flat, most = weight.reshape(5, -1).double().numpy(), 2 ** (bits - 1) - 1
    expected = by_the_book(flat, columns.double().numpy(), quantizer.scale.double().numpy(), most)
    same = np.isclose(found.reshape(5, -1).numpy(), expected, atol=1e-5)
    assert same.mean() > 0.99, "float32 decides a tie otherwise now and then"
    assert torch.equal(quantizer(found), found), "on the grid"


@pytest.mark.parametrize("quantizer", ["minmax", "lsq"])
def test_outputs_are_nearer_than_with_rounding_to_nearest(quantizer: str) -> None:
    weight, columns = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(3)), correlated(36, 4000)
    made = make_quantizer(TensorQuant(4, quantizer, "minmax", "channel", True), Statistics.of_tensor(weight, True)).eval()

    def error(found: Tensor) -> float:
        return float(((found - weight).reshape(6, -1) @ columns).square().mean())

    with torch.no_grad():
        assert error(rounded(weight, Curvature.of(columns), made)) < 0.2 * error(made(weight))


class Mixed(nn.Module):
    """A plain, a strided, a grouped and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.strided = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 4, stride=2, padding=1)
        self.grouped, self.last = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.ConvTranspose2d(8, 3, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(torch.relu(self.grouped(torch.relu(self.strided(torch.relu(self.plain(x)))))))
        return found


def quantized(quantizer: str, bits: int = 4, network: type[nn.Module] = Mixed) -> Quantized:
    torch.manual_seed(4)
    traced = trace(network(), {"body": ("*",)})
    policy = uniform(f"{bits}/8/8", {"body": ("weight", "activation")}, quantizer)
    return quantize(traced, policy, collect(traced, [IMAGES]), Execution(8, True))


def changed_by_rounding(network: Quantized) -> set[str]:
    """The parameters that `round_weights` moves."""
    before = {name: values.clone() for name, values in network.module.named_parameters()}
    round_weights(network, curvatures(network.plan.traced, IMAGES))
    return {name for name, values in network.module.named_parameters() if not torch.equal(values, before[name])}


def test_plain_convolutions_are_rounded_and_others_stay() -> None:
    network = quantized("minmax")
    network.module.train()
    assert changed_by_rounding(network) == {"plain.weight", "strided.weight"}
    assert network.module.training, "it is left as it was"


class Deep(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            *(layer for ends in ((3, 16), (16, 16), (16, 16), (16, 3)) for layer in (nn.Conv2d(*ends, 3, padding=1), nn.ReLU()))
        )


def test_a_network_is_nearer_to_float_on_images_like_those_of_calibration() -> None:
    network, plain = quantized("minmax", 3, Deep), quantized("minmax", 3, Deep)
    smooth = functional.avg_pool2d(torch.rand(8, 3, 40, 40, generator=torch.Generator().manual_seed(5)), 5, 1)
    round_weights(network, curvatures(network.plan.traced, smooth[:4]))
    with torch.no_grad():
        exact = network.plan.traced.module(smooth[4:])
        errors = [functional.mse_loss(each.module.eval()(smooth[4:]), exact).item() for each in (network, plain)]
    assert errors[0] < 0.5 * errors[1]


def test_a_quantizer_whose_grid_follows_the_tensor_keeps_its_weights() -> None:
    assert changed_by_rounding(quantized("dorefa")) == set()
