"""What every entry of QUANTIZERS x bits x granularity x signedness must do, and every clipping rule."""

import importlib
import itertools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from autoq.config.policy import TensorQuant
from autoq.errors import PolicyError
from autoq.quantizers import CLIPPING_NAMES, QUANTIZERS, make_quantizer
from autoq.quantizers.base import Quantizer
from autoq.quantizers.functional import quantize_affine
from autoq.quantizers.range_estimators import BINS, CANDIDATES, CLIPPINGS, Statistics
from tests.contracts.equations import EQUATIONS, Case

FORMATS = [
    TensorQuant(bits, name, "minmax", granularity, signed)
    for name, info in QUANTIZERS.items()
    for bits, granularity, signed in itertools.product(info.bits, ("tensor", "channel"), (True, False))
    if not info.unfit(None, signed)
]
BENT = [quant for quant in FORMATS if quant.quantizer == "dorefa" and quant.signed and quant.bits > 1]
"""Whose equation bends the weights, so that doing it twice bends them twice."""

WITHOUT_ZERO = [*BENT, *(quant for quant in FORMATS if quant.bits == 1 and quant.signed)]

ROWS, VALUES = 3, 8


def floats(largest: float) -> st.SearchStrategy[float]:
    """Denormals and both zeros among them. Exactly representable bounds, as Hypothesis wants."""
    return st.floats(-largest, largest, width=32)


TENSORS = st.one_of(
    arrays(np.float32, (ROWS, VALUES), elements=floats(4.0)),
    arrays(np.float32, (ROWS, VALUES), elements=floats(2.0**100)),
    arrays(np.float32, (ROWS, VALUES), elements=st.floats(0, 2.0**-126, width=32)),
    floats(2.0**100).map(lambda value: np.full((ROWS, VALUES), value, np.float32)),
    st.just(np.zeros((ROWS, VALUES), np.float32)),
).map(torch.from_numpy)

few = settings(max_examples=8, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))


def label(quant: TensorQuant) -> str:
    return f"{quant.quantizer}-{quant.bits}-{quant.granularity}-{'s' if quant.signed else 'u'}"


def statistics_of(x: torch.Tensor, quant: TensorQuant) -> Statistics:
    return Statistics.of_tensor(x, per_channel=quant.granularity == "channel")


def random_tensor(seed: int, values: int = 300) -> torch.Tensor:
    spread = torch.tensor([[0.1], [0.5], [1.0], [2.0], [4.0]])
    return torch.randn(5, values, generator=torch.Generator().manual_seed(seed)) * spread


# ---------------------------------------------------------------- the grid


def check_grid(quantizer: Quantizer, x: torch.Tensor) -> None:
    quant = quantizer.quant
    with torch.no_grad():
        y, integers = quantizer(x), quantizer.to_integer(x)
        scale, zero_point = (part.reshape(-1, 1) for part in (quantizer.scale, quantizer.zero_point))
        assert y.dtype == torch.float32
        assert integers.dtype == zero_point.dtype == torch.int32
        assert torch.isfinite(y).all()
        assert (scale > 0).all()
        assert integers.min() >= quantizer.qmin
        assert integers.max() <= quantizer.qmax
        levels = max(len(row.unique()) for row in integers) if quant.granularity == "channel" else len(integers.unique())
        assert levels <= 2**quant.bits
        torch.testing.assert_close((integers - zero_point) * scale, y, rtol=0, atol=0)
        for values, found in zip(x, y, strict=True):
            assert (found[values.argsort()].diff() >= 0).all(), "a larger value has a smaller level"
        if quant not in BENT:
            assert torch.equal(quantizer(y), y), "twice is not as once; exempt the format in BENT if its equation says so"
        if quant not in WITHOUT_ZERO:
            assert (quantizer(torch.zeros_like(x)) == 0).all(), "zero is exactly representable"


@pytest.mark.parametrize("quant", FORMATS, ids=label)
def test_contract(quant: TensorQuant) -> None:
    x = random_tensor(quant.bits)
    check_grid(make_quantizer(quant, statistics_of(x, quant)).eval(), x)


def made_for(quant: TensorQuant) -> Quantizer:
    """A quantizer of a format for `random_tensor`."""
    x = random_tensor(quant.bits)
    return make_quantizer(quant, statistics_of(x, quant)).eval()


@pytest.mark.parametrize(
    "quant",
    [quant for quant in FORMATS if not QUANTIZERS[quant.quantizer].unfit("weight", quant.signed) and made_for(quant).elementwise],
    ids=label,
)
def test_an_elementwise_quantizer_rounds_a_part_as_it_rounds_the_whole(quant: TensorQuant) -> None:
    x, quantizer = random_tensor(quant.bits), made_for(quant)
    whole, part = quantizer(x), quantizer(x[:, 7:8])
    torch.testing.assert_close(part, whole[:, 7:8], rtol=0, atol=0, msg="say elementwise = False in its class")


@few
@given(x=TENSORS)
@pytest.mark.parametrize("name", sorted(QUANTIZERS))
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_contract_for_zeros_constants_denormals_and_huge_values(name: str, granularity: str, x: torch.Tensor) -> None:
    for quant in FORMATS:
        if (quant.quantizer, quant.granularity) == (name, granularity):
            check_grid(make_quantizer(quant, statistics_of(x, quant)).eval(), x)


# ---------------------------------------------------------------- the equation


def check_equation(quant: TensorQuant, x: torch.Tensor, training: bool) -> None:
    """Between the equation's levels a float32 rounding (of x and of the range) below and above."""
    statistics = statistics_of(x, quant)
    found = make_quantizer(quant, statistics).train(training)(x).detach().double().numpy()
    rows = x.double().numpy().reshape(len(statistics.low), -1)
    low, high = (end.double().numpy()[:, None] for end in (statistics.low, statistics.high))
    case = Case(rows, low, high, quant.bits, quant.signed)
    near = 3e-7 * (np.abs(rows) + np.maximum(np.abs(low), np.abs(high)) + 1e-9)
    below, above = (EQUATIONS[quant.quantizer](rows + shift, case) for shift in (-near, near))
    slack = 1e-6 * np.maximum(np.abs(below), np.abs(above)) + 1e-30
    found = found.reshape(rows.shape)
    assert (found >= below - slack).all()
    assert (found <= above + slack).all()
    if np.abs(rows).max() > 1e-6 and quant.bits <= 8:
        assert (np.abs(below - above) <= slack).mean() > 0.9, "few values lie that near a border"


@pytest.mark.parametrize("quant", FORMATS, ids=label)
@pytest.mark.parametrize("training", [True, False])
def test_forward_is_the_paper_s_equation(quant: TensorQuant, training: bool) -> None:
    if training and quant.quantizer == "inq":
        return  # its training leaves weights float: tests/quantizers/test_estimators.py
    check_equation(quant, random_tensor(quant.bits), training)
    check_equation(quant, random_tensor(quant.bits).abs(), training)


# ---------------------------------------------------------------- training


def trained_once(quantizer: Quantizer, x: torch.Tensor) -> torch.Tensor:
    """A tensor of ones times the quantizer's output, backward, after any warm-up. Returns the gradient of x."""
    with torch.no_grad():
        for _ in range(20):
            quantizer.train()(x)
    x = x.clone().requires_grad_()
    quantizer(x).sum().backward()
    assert x.grad is not None
    return x.grad


@pytest.mark.parametrize("name", sorted(QUANTIZERS))
def test_state_dict_round_trip_and_gradients(name: str) -> None:
    for signed in (True, False):
        if QUANTIZERS[name].unfit(None, signed):
            continue
        quant = TensorQuant(min(4, QUANTIZERS[name].bits[-1]), name, "percentile", "channel", signed)
        x = torch.randn(3, 50)
        first = make_quantizer(quant, Statistics.of_tensor(x, True))
        assert torch.isfinite(trained_once(first, x)).all()
        learned = [p for p in first.parameters() if p.grad is not None and p.grad.abs().sum() > 0]
        assert bool(learned) is QUANTIZERS[name].learned
        second = make_quantizer(quant, Statistics.of_tensor(torch.rand(3, 50), True))
        second.load_state_dict(first.state_dict())
        for mode in (True, False):
            torch.testing.assert_close(second.train(mode)(x), first.train(mode)(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", sorted(QUANTIZERS))
def test_the_source_is_cited(name: str) -> None:
    module, _, attribute = QUANTIZERS[name].location.partition(":")
    text = getattr(importlib.import_module(module), attribute).__doc__
    assert "equation" in text, "the docstring of the class names the source's equation, by this word"
    assert QUANTIZERS[name].source.split(" et al")[0] in text, "the docstring of the class names the source's author"


def test_every_quantizer_has_an_oracle() -> None:
    assert set(EQUATIONS) == set(QUANTIZERS)


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name, info in QUANTIZERS.items() for kind in ("signed", "unsigned") if kind in info.serves]
)
def test_activations_are_rounded_as_runtimes_round_them(name: str, kind: str) -> None:
    """A file holds only the grid of an activation: QuantizeLinear rounds to nearest."""
    signed = kind == "signed"
    x = torch.randn(64, generator=torch.Generator().manual_seed(0)) if signed else torch.linspace(0, 3, 64)
    quant = TensorQuant(min(8, QUANTIZERS[name].bits[-1]), name, "minmax", "tensor", signed)
    quantizer = make_quantizer(quant, Statistics.of_tensor(x, per_channel=False), "activation", integer_bits=8)
    found = quantizer.to_integer(x)
    nearest = quantize_affine(x, quantizer.scale, quantizer.zero_point, quantizer.qmin, quantizer.qmax)
    assert torch.equal(found, nearest.to(torch.int32)), "override _integers only in a quantizer that serves weights alone"
    before = quantizer.eval().scale.clone()
    quantizer(3 * x)
    assert torch.equal(quantizer.scale, before), "a file holds one grid: override observe only in a quantizer of weights alone"


# ---------------------------------------------------------------- clipping rules


def test_the_table_of_clippings_is_complete() -> None:
    assert tuple(CLIPPINGS) == CLIPPING_NAMES


@few
@given(x=TENSORS)
@pytest.mark.parametrize("rule", CLIPPING_NAMES)
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("signed", [True, False])
def test_a_range_lies_within_the_data(rule: str, bits: int, signed: bool, x: torch.Tensor) -> None:
    statistics = Statistics.of_tensor(x, per_channel=True)
    low, high = statistics.range(rule, bits, signed)
    assert low.shape == high.shape == (ROWS,)
    assert (low <= high).all()
    mirrored = statistics.high.clamp(min=0), statistics.low.clamp(max=0)
    lowest = torch.minimum(mirrored[1], -mirrored[0]) if signed else mirrored[1]
    highest = torch.maximum(mirrored[0], -mirrored[1]) if signed else mirrored[0]
    assert (low >= lowest * (1 + 1e-6)).all()
    assert (high <= highest * (1 + 1e-6)).all()


def test_moving_minmax_is_the_mean_of_the_batches() -> None:
    # FQSR, equation 4: l = 3 batches with maxima 1, 2, 6
    batches = torch.tensor([[-1.0, -3.0, -2.0]]), torch.tensor([[1.0, 2.0, 6.0]])
    statistics = Statistics(torch.tensor([-3.0]), torch.tensor([6.0]), torch.zeros(1, 4), batches)
    assert [end.item() for end in statistics.range("moving_minmax", 8, False)] == [-2.0, 3.0]
    weight = Statistics.of_tensor(torch.tensor([[-1.0, 2.0], [0.0, 5.0]]), per_channel=True)
    assert [end.tolist() for end in weight.range("moving_minmax", 8, True)] == [[-1.0, 0.0], [2.0, 5.0]]


def test_clipped_relu_is_bounded_by_one() -> None:
    # XLSR, equation 2: max(0, min(x, 1))
    statistics = Statistics.of_tensor(torch.tensor([[-0.5, 3.0], [-4.0, 0.5]]), per_channel=True)
    assert [end.tolist() for end in statistics.range("clipped_relu", 8, False)] == [[0.0, 0.0], [1.0, 0.5]]
    assert [end.tolist() for end in statistics.range("clipped_relu", 8, True)] == [[-0.5, -1.0], [1.0, 0.5]]


def divergence(row: np.ndarray, factor: float, bits: int, signed: bool) -> float:
    """KL(P || Q) of one candidate range, bin by bin."""
    low, high = row.min(), row.max()
    counts, edges = np.histogram(row, BINS, (low, high))
    centres = (edges[1:] + edges[:-1]) / 2
    case = Case(row[None], np.array([[low * factor]]), np.array([[high * factor]]), bits, signed)
    levels = EQUATIONS["minmax"](centres[None], case)[0]
    inside = (centres >= low * factor) & (centres <= high * factor)
    p, q = np.where(inside, counts, 0.0), np.zeros(BINS)
    width = (high - low) / BINS
    p[int((low * factor - low) / width)] += counts[centres < low * factor].sum()
    p[min(int((high * factor - low) / width), BINS - 1)] += counts[centres > high * factor].sum()
    for level in np.unique(levels):
        members = levels == level
        present = members & (p > 0)
        q[present] = counts[members & inside].sum() / max(present.sum(), 1)
    p, q = p / p.sum(), q / max(q.sum(), 1)
    return float(sum(a * np.log(a / max(b, 1e-12)) for a, b in zip(p, q, strict=True) if a > 0))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("signed", [True, False])
def test_entropy_finds_the_best_of_all_64_ranges(bits: int, signed: bool) -> None:
    random = np.random.default_rng(bits)
    rows = np.stack([random.standard_t(3, 4000), random.exponential(1, 4000) - 0.2]).astype(np.float32)
    _, high = Statistics.of_tensor(torch.from_numpy(rows), True).range("entropy", bits, signed)
    for row, end in zip(rows.astype(float), high.tolist(), strict=True):
        every = [divergence(row, step / CANDIDATES, bits, signed) for step in range(1, CANDIDATES + 1)]
        chosen = round(end / row.max() * CANDIDATES)
        assert every[chosen - 1] <= min(every) * 1.02 + 1e-9


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("quant", "role", "message"),
    [
        (TensorQuant(8, "lqs"), None, r"unknown quantizer 'lqs' \(did you mean 'lsq'\?\); type one of "),
        (TensorQuant(1, "lsq"), None, "quantizer 'lsq' supports 2 to 16 bits, given 1"),
        (TensorQuant(8, "lsq", "msee"), None, "unknown clipping 'msee'"),
        (TensorQuant(4, "binary", signed=True), "weight", "quantizer 'binary' supports 1 bit only, given 4"),
        (TensorQuant(4, "ternary", signed=True), "weight", "quantizer 'ternary' supports 2 bits only, given 4"),
        (
            TensorQuant(8, "pact", signed=True),
            "weight",
            "quantizer 'pact' supports unsigned activations and skips, not weights; give one of (.*, )?binary, (.*, )?inq",
        ),
        (TensorQuant(2, "ternary"), "activation", "'ternary' supports weights, not unsigned activations and skips; give one of"),
        (TensorQuant(2, "ternary"), "weight", "'ternary' supports weights, not asymmetric weights; give one of (.*, )?lsq"),
        (
            TensorQuant(4, "dorefa", signed=True),
            "skip",
            "'dorefa' supports weights and unsigned activations and skips, not signed",
        ),
        (TensorQuant(4, "pact", signed=True), None, "not signed data; give one of"),
        (
            TensorQuant(8, "dorefa", signed=True),
            "weight",
            "'dorefa' supports weights of up to 7 bits on targets with 8-bit integers, given 8",
        ),
        (
            TensorQuant(5, "inq", signed=True),
            "weight",
            "'inq' supports weights of up to 4 bits on targets with 8-bit integers, given 5",
        ),
    ],
)
def test_names_roles_and_widths_are_checked(quant: TensorQuant, role: str | None, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        make_quantizer(quant, Statistics.of_tensor(torch.rand(4), False), role, integer_bits=8)
