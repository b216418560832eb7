"""Gradients against the published estimators, worked in numpy, and what changes while a quantizer trains."""

import numpy as np
import pytest
import torch
from torch import Tensor

from autoq.config.policy import TensorQuant
from autoq.quantizers import make_quantizer
from autoq.quantizers.base import Quantizer
from autoq.quantizers.range_estimators import Statistics


def quantizer_of(name: str, bits: int, signed: bool, low: float, high: float) -> Quantizer:
    """One scale for the tensor, of the range [low, high], past any warm-up."""
    quantizer = make_quantizer(TensorQuant(bits, name, signed=signed), Statistics.of_tensor(torch.tensor([low, high]), False))
    if hasattr(quantizer, "seen"):
        quantizer.seen = 20  # type: ignore[assignment]
    return quantizer


def backward(quantizer: Quantizer, x: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(x float64, the gradient that reaches the output, the gradient that reaches x)."""
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(7))
    leaf = x.clone().requires_grad_()
    quantizer.train()(leaf).backward(upstream)
    assert leaf.grad is not None
    return x.double().numpy(), upstream.double().numpy(), leaf.grad.double().numpy()


def sample(negative: bool = True) -> Tensor:
    x = torch.randn(200, generator=torch.Generator().manual_seed(3))
    return x if negative else x.abs()


# ---------------------------------------------------------------- learned scales


@pytest.mark.parametrize(
    ("name", "signed", "negative"),
    [("fqsr", True, True), ("fqsr", False, True), ("fqsr", False, False), ("pams", True, True), ("pams", False, True)],
)
def test_interval_gradient(name: str, signed: bool, negative: bool) -> None:
    """All but the rounding of Q = round(clip(v / I) N) I / N is differentiated: (Q - v) / I inside, the bound outside."""
    quantizer = quantizer_of(name, 3, signed, -1.0 if negative else 0.0, 1.0)
    v, upstream, gradient = backward(quantizer, sample(negative))
    steps, least = (3, -1) if negative else (7, 0)
    interval = quantizer.scale.item() * steps
    q = np.round(np.clip(v / interval, least, 1) * steps) * interval / steps
    # a value within half a step beyond the interval rounds onto its end: torch's kernel counts it as inside
    inside = (np.round(v / interval * steps) <= steps) & (np.round(v / interval * steps) >= least * steps)
    np.testing.assert_allclose(gradient, upstream * inside, atol=1e-7)
    of_interval = (upstream * np.where(inside, (q - v) / interval, np.clip(v / interval, least, 1))).sum()
    # d I / d log_gain = I
    assert quantizer.log_gain.grad.item() == pytest.approx(of_interval * interval, rel=1e-4)


@pytest.mark.parametrize("bits", [1, 4])
def test_pact_gradient(bits: int) -> None:
    """Equation 3: alpha gets 1 where x >= alpha; x gets 1 in [0, alpha)."""
    quantizer = quantizer_of("pact", bits, False, 0.0, 1.0)
    x, upstream, gradient = backward(quantizer, sample())
    alpha = quantizer.scale.item() * (2**bits - 1)
    np.testing.assert_allclose(gradient, upstream * ((x >= 0) & (x < alpha)), atol=1e-7)
    assert quantizer.log_gain.grad.item() == pytest.approx((upstream * (x >= alpha)).sum() * alpha, rel=1e-4)


def test_lsq_plus_gradients() -> None:
    """Of s: round(u) - u inside, n and p outside, u = (x - beta) / s; of beta: 0 inside, 1 outside; times 1 / sqrt(N Q_P)."""
    quantizer = quantizer_of("lsq+", 3, False, -0.5, 1.25)
    x, upstream, gradient = backward(quantizer, sample())
    scale, zero_point = quantizer.scale.item(), quantizer.zero_point.item()
    assert zero_point == 2
    beta = -zero_point * scale
    u = (x - beta) / scale
    inside = (np.round(u) >= 0) & (np.round(u) <= 7)
    np.testing.assert_allclose(gradient, upstream * inside, atol=1e-7)
    factor = 1 / np.sqrt(200 * 7)
    of_scale = (upstream * np.where(inside, np.round(u) - u, np.clip(u, 0, 7))).sum() * factor
    of_beta = (upstream * ~inside).sum() * factor
    assert quantizer.log_gain.grad.item() == pytest.approx(of_scale * scale, rel=1e-4)
    assert quantizer.offset.grad.item() == pytest.approx(of_beta * quantizer.initial_scale.item() * 7, rel=1e-4)


def test_lsq_plus_moves_its_zero_point() -> None:
    quantizer = quantizer_of("lsq+", 4, False, -1.0, 2.0)
    assert quantizer.zero_point.tolist() == [5]
    quantizer.get_parameter("offset").data += 0.2  # of a range of 3
    assert quantizer.zero_point.tolist() == [2]
    quantizer.get_parameter("offset").data += 1.0
    assert quantizer.zero_point.tolist() == [0], "zero stays a level"
    quantizer(torch.tensor([-1.0, 5.0])).sum().backward()
    assert quantizer.offset.grad.abs().sum() > 0, "and the offset can come back"


def test_fqsr_begins_with_the_mean_of_twenty_maxima() -> None:
    quantizer = make_quantizer(TensorQuant(4, "fqsr"), Statistics.of_tensor(torch.tensor([0.0, 8.0]), False)).train()
    maxima = np.random.default_rng(0).uniform(1, 3, 21)
    for number, largest in enumerate(maxima):
        x = torch.tensor([0.0, largest], dtype=torch.float32, requires_grad=True)
        quantizer(x).sum().backward()
        assert (quantizer.log_gain.grad is None) is (number < 20), "trained only when it has begun"
    assert quantizer.scale.item() * 15 == pytest.approx(maxima[:20].mean(), rel=2.5e-4)


# ---------------------------------------------------------------- weights


def test_dorefa_weight_gradient_is_that_of_the_smooth_part() -> None:
    """Finite differences of E tanh(w) / max |tanh(w)|, E the magnitude."""
    weights = sample()[:20]
    quantizer = quantizer_of("dorefa", 4, True, -1.0, 1.0)
    w, upstream, gradient = backward(quantizer, weights)
    magnitude = quantizer.scale.item() * 15

    def smooth(w: np.ndarray) -> float:
        return float((upstream * magnitude * np.tanh(w) / np.abs(np.tanh(w)).max()).sum())

    nudges = 1e-5 * np.eye(len(w))
    expected = [(smooth(w + nudge) - smooth(w - nudge)) / 2e-5 for nudge in nudges]
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "bits"), [("ternary", 2), ("dorefa", 1)])
def test_gradients_pass_straight_through(name: str, bits: int) -> None:
    _, upstream, gradient = backward(quantizer_of(name, bits, True, -1.0, 1.0), sample())
    np.testing.assert_array_equal(gradient, upstream)


def test_binary_gradient() -> None:
    """XNOR-Net: times 1/n + alpha where |w| <= 1, else 1/n."""
    w, upstream, gradient = backward(quantizer_of("binary", 1, True, -1.0, 1.0), sample())
    np.testing.assert_allclose(gradient, upstream * (1 / 200 + np.abs(w).mean() * (np.abs(w) <= 1)), rtol=2.5e-4)


def test_dorefa_activation_gradient_passes_between_zero_and_the_bound() -> None:
    x, upstream, gradient = backward(quantizer_of("dorefa", 2, False, 0.0, 1.0), sample())
    np.testing.assert_allclose(gradient, upstream * ((x >= 0) & (x <= 1)), atol=1e-7)


def test_a_scale_follows_the_weights() -> None:
    weights = torch.tensor([[0.1, -0.2, 0.3, 1.0], [1.0, 1.0, -1.0, 3.0]])
    statistics = Statistics.of_tensor(weights, per_channel=True)
    for name, bits, expected in (("binary", 1, [0.4, 1.5]), ("ternary", 2, [0.65, 3.0]), ("dorefa", 4, [1 / 15, 3 / 15])):
        quantizer = make_quantizer(TensorQuant(bits, name, "minmax", "channel", signed=True), statistics)
        for factor in (1.0, 0.5):
            quantizer.to_integer(weights * factor)
            np.testing.assert_allclose(quantizer.scale, np.array(expected) * factor, rtol=2.5e-4)


def test_inq_levels_by_hand() -> None:
    # s = 0.9: n1 = floor(log2 1.2) = 0; 3 bits: n2 = 0 + 1 - 2 = -1: levels 0, 1/2, 1; borders 1/4, 3/4
    quantizer = quantizer_of("inq", 3, True, -0.9, 0.5).eval()
    x = torch.tensor([0.2, 0.25, -0.74, 0.75, -0.9, 5.0])
    assert quantizer(x).tolist() == [0.0, 0.5, -0.5, 1.0, -1.0, 1.0]
    assert quantizer.to_integer(x).tolist() == [0, 1, -1, 2, -2, 2]


def test_inq_fixes_the_largest_weights_first() -> None:
    """Half of them, then 75 %, then 87.5 %: those are on levels, get no gradient and stay; the others are float."""
    weights = sample()[:64]
    quantizer = quantizer_of("inq", 4, True, weights.min().item(), weights.max().item())
    order = weights.abs().argsort(descending=True)
    levels = quantizer.eval()(weights)
    for progress, count in ((0.0, 32), (0.34, 48), (0.5, 48), (0.67, 56), (0.99, 56)):
        quantizer.progress = progress
        leaf = weights.clone().requires_grad_()
        found = quantizer.train()(leaf)
        found.sum().backward()
        fixed, free = order[:count], order[count:]
        torch.testing.assert_close(found[fixed], levels[fixed], rtol=0, atol=0)
        torch.testing.assert_close(found[free], weights[free], rtol=0, atol=0)
        assert (leaf.grad[fixed] == 0).all()
        assert (leaf.grad[free] == 1).all()
    moved = weights + 0.5
    kept = quantizer(moved).detach()
    torch.testing.assert_close(kept[fixed], levels[fixed], rtol=0, atol=0)
    torch.testing.assert_close(kept[free], moved[free], rtol=0, atol=0)
    finished = quantizer.eval()(moved)
    torch.testing.assert_close(finished[fixed], levels[fixed], rtol=0, atol=0)
    assert set(finished.abs().div(quantizer.scale).tolist()) <= {0.0, 1.0, 2.0, 4.0, 8.0}
