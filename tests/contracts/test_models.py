"""What every entry of MODELS must do."""

import pytest
import torch

from autoq.executed import as_executed
from autoq.models import MODELS, build_model
from autoq.policy import uniform
from autoq.quantize import Execution, collect, quantize
from autoq.tracing import roles_by_stage, trace

CASES = [(name, scale) for name, info in MODELS.items() for scale in info.bundled]


@pytest.mark.parametrize(("name", "scale"), CASES)
def test_contract(name: str, scale: int) -> None:
    info = MODELS[name]
    model = build_model(name, scale)
    image = torch.rand(1, 3, 13, 19)
    with torch.no_grad():
        expected = model(image)
    assert expected.shape == (1, 3, 13 * scale, 19 * scale)
    traced = trace(model, info.patterns)
    with torch.no_grad():
        torch.testing.assert_close(traced.module(image), expected, rtol=0, atol=1e-5)
    assert roles_by_stage(traced.sites) == {stage: tuple(roles) for stage, roles in info.stages.items()}
    network = quantize(traced, uniform("8/8/8", info.stages), collect(traced, [image]), Execution(8, True))
    assert len(network.integer_layers) == len(traced.layers)
    with torch.no_grad():
        error = (as_executed(network)(image) - expected).square().mean()
    assert 0 < error < 1e-3
