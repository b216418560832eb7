"""Quantizers against the papers' equations, worked independently in float64 numpy."""

import numpy as np
import pytest
import torch

from autoq.config.policy import TensorQuant
from autoq.quantizers import functional, make_quantizer
from autoq.quantizers.base import BiasQuantizer, Float16
from autoq.quantizers.minmax import image_quantizer
from autoq.quantizers.range_estimators import CLIPPINGS, Statistics, mse, percentile


def equation(x: np.ndarray, low: np.ndarray, high: np.ndarray, bits: int, signed: bool) -> tuple[np.ndarray, np.ndarray]:
    """Multi-precision eq. 1-2 in float64, one scale a row: (result, distance of x to the nearest rounding boundary in steps)."""
    low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    qmax = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    qmin = -qmax if signed else 0
    scale = np.maximum(-low, high) / qmax if signed else (high - low) / qmax
    mantissa, exponent = np.frexp(scale)  # kept to 12 significant bits
    scale = np.ldexp(np.floor(mantissa * 4096 + 0.5) / 4096, exponent)
    zero = np.zeros_like(scale) if signed else np.clip(np.round(-low / scale), qmin, qmax)
    steps = x / scale[:, None]
    levels = np.clip(np.round(steps + zero[:, None]), qmin, qmax)
    return (levels - zero[:, None]) * scale[:, None], np.abs(steps - np.floor(steps) - 0.5)


@pytest.mark.parametrize("name", ["minmax", "lsq"])
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8, 12, 16])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_forward_is_the_equation_to_1e_6(name: str, bits: int, granularity: str, signed: bool, training: bool) -> None:
    random = np.random.default_rng(bits)
    x = (random.standard_normal((6, 500)) * random.uniform(0.1, 1, (6, 1)) + random.uniform(-0.3, 0.3, (6, 1))).astype(np.float32)
    statistics = Statistics.of_tensor(torch.from_numpy(x), per_channel=granularity == "channel")
    quantizer = make_quantizer(TensorQuant(bits, name, "minmax", granularity, signed), statistics).train(training)
    found = quantizer(torch.from_numpy(x)).detach().numpy()
    rows = x.astype(np.float64).reshape(6 if granularity == "channel" else 1, -1)
    expected, distance = equation(rows, rows.min(1), rows.max(1), bits, signed)
    # float32 may put a value within 1e-5 x its level on the other side of a boundary
    clear = (distance > 1e-5 * 2 ** max(0, bits - 6)).reshape(x.shape)
    assert clear.mean() > 0.95
    np.testing.assert_allclose(found[clear], expected.reshape(x.shape)[clear], atol=1e-6)


def test_the_worked_example() -> None:
    # range [-1, 3], 2 bits: scale 4/3 -> zero point round(0.75) = 1, levels -4/3, 0, 4/3, 8/3
    scale, zero = functional.affine_parameters(torch.tensor([-1.0]), torch.tensor([3.0]), 2, signed=False)
    assert scale.item() == pytest.approx(4 / 3, rel=2e-4)
    assert zero.item() == 1
    values = functional.fake_quantize(torch.tensor([-1.0, 0.1, 2.1, 9.0]), scale, zero, 0, 3)
    np.testing.assert_allclose(values.numpy(), [-4 / 3, 0, 8 / 3, 8 / 3], rtol=2e-4, atol=1e-7)


def test_short_scales_are_exact_when_multiplied() -> None:
    scales = functional.shorten(torch.rand(1000) + 1e-3)
    exact = scales.double()
    assert ((scales * 255).double() == exact * 255).all()
    assert ((scales[:-1] * scales[1:]).double() == exact[:-1] * exact[1:]).all()


def test_lsq_gradient_is_the_published_estimator() -> None:
    """LSQ eq. 3: round(v/s) - v/s inside, -Q_N below, Q_P above; times 1/sqrt(N Q_P); straight through for v."""
    values = torch.tensor([-5.0, -0.26, 0.1, 0.74, 5.0], requires_grad=True)
    quantizer = make_quantizer(
        TensorQuant(3, "lsq", "minmax", "tensor", True), Statistics.of_tensor(torch.tensor([-1.5, 1.5]), False)
    )
    scale = quantizer.scale.item()
    quantizer(values).sum().backward()
    v = values.detach().double().numpy() / scale
    inside = (v > -3.5) & (v < 3.5)
    terms = np.where(v <= -3, -3, np.where(v >= 3, 3, np.round(v) - v))
    expected = terms.sum() / np.sqrt(5 * 3) * scale  # chain rule to log_gain: d scale / d log_gain = scale
    assert quantizer.log_gain.grad.item() == pytest.approx(expected, rel=1e-5)
    np.testing.assert_array_equal(values.grad.numpy(), inside.astype(np.float32))


def test_minmax_gradient_passes_inside_and_stops_outside() -> None:
    values = torch.tensor([-2.0, 0.3, 2.0], requires_grad=True)
    quantizer = make_quantizer(TensorQuant(4), Statistics.of_tensor(torch.tensor([-1.0, 1.0]), False))
    quantizer(values).sum().backward()
    np.testing.assert_array_equal(values.grad.numpy(), [0, 1, 0])


def test_percentile_is_numpys() -> None:
    sample = np.random.default_rng(0).standard_normal(5000)
    low, high = percentile(Statistics.of_tensor(torch.from_numpy(sample), False), 8, False)
    np.testing.assert_allclose([low.item(), high.item()], np.percentile(sample, [0.05, 99.95]), rtol=1e-5)


@pytest.mark.parametrize("bits", [2, 4, 6, 8])
@pytest.mark.parametrize("signed", [True, False])
def test_mse_finds_nearly_the_best_of_all_64_ranges(bits: int, signed: bool) -> None:
    random = np.random.default_rng(bits)
    rows = np.stack([random.standard_t(3, 4000), random.standard_normal(4000), random.uniform(-1, 2, 4000)]).astype(np.float32)
    low, high = mse(Statistics.of_tensor(torch.from_numpy(rows), True), bits, signed)

    def error(row: np.ndarray, low: float, high: float) -> float:
        result, _ = equation(row[None].astype(float), np.array([low]), np.array([high]), bits, signed)
        return float(((result - row) ** 2).mean())

    for number, row in enumerate(rows):
        least = min(error(row, row.min() * step / 64, row.max() * step / 64) for step in range(1, 65))
        assert error(row, low[number].item(), high[number].item()) <= 1.01 * least
        assert high[number].item() / row.max() * 64 == pytest.approx(round(high[number].item() / row.max() * 64), abs=1e-3)


@pytest.mark.parametrize("rule", sorted(CLIPPINGS))
def test_a_constant_tensor_has_a_usable_scale(rule: str) -> None:
    for value in (0.0, 0.7, -0.7):
        quantizer = make_quantizer(TensorQuant(8, "minmax", rule), Statistics.of_tensor(torch.full((64,), value), False))
        assert quantizer.scale.item() > 0
        kept = max(value, 0.0) if rule == "clipped_relu" else value
        assert quantizer(torch.full((4,), value)).detach().numpy() == pytest.approx(kept, abs=4e-3)


def test_image_grid_is_exactly_eight_bits() -> None:
    pixels = torch.arange(256).float() / 255
    quantizer = image_quantizer().eval()
    assert quantizer.scale.item() == np.float32(1 / 255)
    assert quantizer.to_integer(pixels).tolist() == list(range(256))


def test_float16_storage_is_ieee_half() -> None:
    x = torch.randn(100)
    np.testing.assert_array_equal(Float16()(x).numpy(), x.numpy().astype(np.float16).astype(np.float32))


def test_biases_are_integers_at_the_product_of_scales() -> None:
    activation = make_quantizer(TensorQuant(8), Statistics.of_tensor(torch.tensor([0.0, 2.55]), False))
    weight = make_quantizer(
        TensorQuant(8, granularity="channel", signed=True), Statistics.of_tensor(torch.tensor([[1.27], [0.127]]), True)
    )
    bias = torch.tensor([0.123456, -0.00321])
    found = BiasQuantizer(activation, weight, channels=2)
    np.testing.assert_allclose(found(bias), np.round(bias.numpy() / found.scale.numpy()) * found.scale.numpy(), rtol=1e-6)
    assert found.to_integer(bias).tolist() == [1235, -321]
