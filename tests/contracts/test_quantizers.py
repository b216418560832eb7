"""What every entry of QUANTIZERS x clipping x format must do."""

import importlib
import itertools

import numpy as np
import pytest
import torch

from autoq.errors import PolicyError
from autoq.policy import TensorQuant
from autoq.quantizers import CLIPPING_NAMES, QUANTIZERS, make_quantizer
from autoq.quantizers.clipping import CLIPPINGS, Statistics

FORMATS = [
    TensorQuant(bits, name, clipping, granularity, signed)
    for name, info in QUANTIZERS.items()
    for bits, clipping, granularity, signed in itertools.product(
        [b for b in (2, 4, 8, 16) if b in info.bits], CLIPPING_NAMES, ("tensor", "channel"), (True, False)
    )
]


def test_the_table_of_clippings_is_complete() -> None:
    assert tuple(CLIPPINGS) == CLIPPING_NAMES


@pytest.mark.parametrize(
    "quant", FORMATS, ids=lambda q: f"{q.quantizer}-{q.clipping}-{q.bits}-{q.granularity}-{'s' if q.signed else 'u'}"
)
def test_contract(quant: TensorQuant) -> None:
    x = torch.randn(5, 300, generator=torch.Generator().manual_seed(quant.bits)) * torch.tensor([[0.1], [0.5], [1.0], [2.0], [4.0]])
    statistics = Statistics.of_tensor(x, per_channel=quant.granularity == "channel")
    quantizer = make_quantizer(quant, statistics).eval()
    with torch.no_grad():
        y = quantizer(x)
        integers = quantizer.to_integer(x)
        again = quantizer(y)
        zero = quantizer(torch.zeros_like(x))
    assert y.dtype == torch.float32
    assert integers.min() >= quantizer.qmin
    assert integers.max() <= quantizer.qmax
    assert len(integers.unique()) <= 2**quant.bits
    assert (zero == 0).all(), "zero is exactly representable"
    torch.testing.assert_close(again, y, rtol=0, atol=0)
    order = x[2].argsort()
    assert (y[2][order].diff() >= 0).all(), "monotone"
    scale, zero_point = (p.detach().reshape(-1, 1).double() for p in (quantizer.scale, quantizer.zero_point))
    np.testing.assert_allclose(y.numpy(), ((integers - zero_point) * scale).float().numpy(), rtol=1e-6, atol=1e-9)
    low, high = CLIPPINGS[quant.clipping](statistics, quant.bits, quant.signed)
    assert (high <= torch.maximum(statistics.high, -statistics.low) + 1e-6).all()
    assert (low >= torch.minimum(statistics.low, -statistics.high) - 1e-6).all()


@pytest.mark.parametrize("name", sorted(QUANTIZERS))
def test_state_dict_round_trip_and_gradients(name: str) -> None:
    quant = TensorQuant(4, name, "percentile", "channel", signed=True)
    x = torch.randn(3, 50)
    first = make_quantizer(quant, Statistics.of_tensor(x, True))
    second = make_quantizer(quant, Statistics.of_tensor(torch.rand(3, 50), True))
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(second.eval()(x), first.eval()(x), rtol=0, atol=0)
    x.requires_grad_()
    first.train()(x).square().sum().backward()
    assert torch.isfinite(x.grad).all()
    learned = [p for p in first.parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert bool(learned) is QUANTIZERS[name].learned


@pytest.mark.parametrize("name", sorted(QUANTIZERS))
def test_the_source_is_cited(name: str) -> None:
    module, _, attribute = QUANTIZERS[name].location.partition(":")
    text = getattr(importlib.import_module(module), attribute).__doc__
    assert "equation" in text
    assert QUANTIZERS[name].source.split(" et al")[0] in text


def test_names_and_widths_are_checked() -> None:
    statistics = Statistics.of_tensor(torch.rand(4), False)
    with pytest.raises(PolicyError, match=r"unknown quantizer 'lqs' \(known: lsq, minmax\)\. Did you mean 'lsq'\?"):
        make_quantizer(TensorQuant(8, "lqs"), statistics)
    with pytest.raises(PolicyError, match="quantizer 'lsq' has 2 to 16 bits, given 1"):
        make_quantizer(TensorQuant(1, "lsq"), statistics)
    with pytest.raises(PolicyError, match="unknown clipping 'msee'"):
        make_quantizer(TensorQuant(8, "lsq", "msee"), statistics)
