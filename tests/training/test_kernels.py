"""What is computed the quicker way against torch's own kernels, gradients included."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from autoq.quantizers.functional import fake_quantize_learned
from autoq.training.kernels.rewrite import convolve_by_columns, pixel_shuffle, prelu, quicker

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def results(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """The output, and the gradient of each input under one and the same upstream gradient, laid out as images are."""
    leaves = [part.detach().clone().requires_grad_() for part in inputs]
    output = function(*leaves)
    output.backward(torch.randn(output.shape, generator=torch.Generator().manual_seed(1)))
    return [output.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def image(channels: int, layout: torch.memory_format) -> Tensor:
    values = torch.randn(2, channels, 7, 10, generator=torch.Generator().manual_seed(0))
    return values.contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("bits", "zero"), [(4, 3), (8, 0), (16, 1000)])
def test_a_learned_scale_as_torchs_kernel(layout: torch.memory_format, bits: int, zero: int) -> None:
    top = 2**bits - 1
    scale, point = torch.tensor([2.5 / top]), torch.tensor([float(zero)])
    x = image(8, layout)
    found = results(lambda x, s, z: fake_quantize_learned(x, s, z, 0, top, 0.1), x, scale, point)
    kernel = torch._fake_quantize_learnable_per_tensor_affine
    expected = results(lambda x, s, z: kernel(x, s, z, 0, top, 0.1), x, scale, point)
    assert (found[1] == 0).any(), "some are clipped"
    for one, other in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    for one, other in zip(found[2:], expected[2:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_learned_scale_of_a_part_of_a_tensor() -> None:
    scale, point = torch.tensor([2.5 / 255]), torch.tensor([3.0])
    for layout in LAYOUTS:
        for x in (image(8, layout)[:, 3:], image(1, layout).expand(2, 8, 7, 10), image(8, layout)[..., :5]):
            found, expected = (
                results(lambda x, s, z, part=part: part(x, s, z), x, scale, point)
                for part in (
                    lambda x, s, z: fake_quantize_learned(x[..., 1:], s, z, 0, 255, 0.1),
                    lambda x, s, z: torch._fake_quantize_learnable_per_tensor_affine(x[..., 1:], s, z, 0, 255, 0.1),
                )
            )
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_the_gradient_of_a_learned_scale_is_not_lost_in_its_sums(bits: int) -> None:
    generator = torch.Generator().manual_seed(4)
    x, top = torch.randn(1, 64, 96, 96, generator=generator), 2**bits - 1
    gradient = 1e-3 + 1e-3 * torch.randn(x.shape, generator=generator)
    scale = torch.tensor([8.0 / top], requires_grad=True)
    zero = float(top // 2)
    fake_quantize_learned(x, scale, torch.tensor([zero]), 0, top, 1.0).backward(gradient)
    units = (x * (1.0 / scale.detach())).double()
    kept = units.round().clamp(-zero, top - zero)
    inside = units.round() == kept
    expected = (gradient.double() * torch.where(inside, kept - units, kept)).sum()
    assert scale.grad is not None
    assert abs(scale.grad.item() - expected.item()) <= 2e-3 * max(1.0, abs(expected.item()))


@pytest.mark.parametrize(("bits", "zeros"), [(4, 0), (8, 0), (8, 5)])
def test_a_learned_scale_for_every_filter_as_torchs_kernel(bits: int, zeros: int) -> None:
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(5))
    scale, point = torch.linspace(0.5, 2, 6) / 2 ** (bits - 1), torch.full((6,), float(zeros))
    low, high = -(2 ** (bits - 1)) + 1, 2 ** (bits - 1) - 1
    kernel = torch._fake_quantize_learnable_per_channel_affine
    found = results(lambda w, s, z: fake_quantize_learned(w, s, z, low, high, 0.1), weight, scale, point)
    expected = results(lambda w, s, z: kernel(w, s, z, 0, low, high, 0.1), weight, scale, point)
    assert (found[1] == 0).any(), "some are clipped"
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_what_comes_after_may_change_its_input_in_place() -> None:
    torch.manual_seed(0)
    x, narrow = torch.randn(1, 64, 6, 6, requires_grad=True), torch.randn(3, 8, 9, 9, requires_grad=True)
    torch.testing.assert_close(F.relu_(pixel_shuffle(x, 2)), F.relu(F.pixel_shuffle(x, 2)))
    F.relu_(pixel_shuffle(x, 2)).sum().backward()
    F.relu_(convolve_by_columns(torch.randn(1, 8, 12, 12), narrow, None, (4, 4))).sum().backward()
    assert x.grad is not None
    assert narrow.grad is not None


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("slope", [0.2, 1.5, 0.0, -0.1])
def test_prelu_as_torchs(layout: torch.memory_format, slope: float) -> None:
    inputs = image(8, layout), torch.tensor([slope])
    for one, other in zip(results(prelu, *inputs), results(F.prelu, *inputs), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("factor", [2, 3])
def test_pixel_shuffle_as_torchs(layout: torch.memory_format, factor: int) -> None:
    x = image(2 * factor**2, layout)
    found, expected = (results(lambda x, each=each: each(x, factor), x) for each in (pixel_shuffle, F.pixel_shuffle))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize(("kernel", "padding"), [((9, 9), (4, 4)), ((3, 3), (0, 0)), ((3, 5), (1, 0)), ((5, 3), (0, 2))])
def test_a_convolution_by_columns_as_torchs(kernel: tuple[int, int], padding: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(2, 8, 11, 12, generator=generator), torch.randn(3, 8, *kernel, generator=generator), torch.randn(3)
    found = results(lambda x, w, b: convolve_by_columns(x, w, b, padding), *inputs)
    expected = results(lambda x, w, b: F.conv2d(x, w, b, padding=padding), *inputs)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


class Wide(nn.Module):
    def __init__(self, inputs: int, outputs: int, side: int) -> None:
        super().__init__()
        self.weight, self.padding = nn.Parameter(torch.randn(outputs, inputs, side, side)), (side // 2, side // 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, None, (1, 1), self.padding, (1, 1), 1)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((64, 64, 3), F.conv2d), ((16, 16, 3), F.conv2d), ((64, 64, 1), F.conv2d), ((64, 3, 9), convolve_by_columns)],
)
def test_how_a_convolution_is_computed(shape: tuple[int, int, int], expected: Callable[..., Tensor]) -> None:
    network = quicker(fx.symbolic_trace(Wide(*shape)))
    assert expected in {node.target for node in network.graph.nodes}


class Narrow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.act, self.shuffle = nn.Parameter(torch.randn(3, 8, 9, 9)), nn.PReLU(), nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.shuffle(self.act(x)), self.weight, None, (1, 1), (4, 4), (1, 1), 1)


def test_the_graph_shares_its_parameters() -> None:
    module = fx.symbolic_trace(Narrow())
    network = quicker(module)
    targets = {node.target for node in network.graph.nodes if node.op == "call_function"}
    assert targets == {prelu, pixel_shuffle, convolve_by_columns}
    x = torch.randn(1, 32, 6, 6)
    torch.testing.assert_close(network(x), module(x), rtol=1e-4, atol=1e-4)
    network(x).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert F.conv2d in {node.target for node in module.graph.nodes}, "what is exported is as it was"
