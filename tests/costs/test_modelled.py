"""Latency that is modelled: what is counted, by hand, and the time that the model stands on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from autoq.config.policy import Policy, StageQuant, uniform
from autoq.costs.latency.analytic import milliseconds, work
from autoq.graph.quantize import Execution, QuantizationPlan
from autoq.graph.trace import trace
from autoq.networks import fresh_model, model_info
from autoq.targets import TARGETS
from autoq.targets.model import SYNAPTICS
from autoq.trial.context import execution_on

INFO = TARGETS["npu-uint8"]
SLOW = 10.0


class Small(nn.Module):
    """Two layers of four channels; with a sum over both, or an activation between that is no clip."""

    def __init__(self, activation: nn.Module, adds: bool) -> None:
        super().__init__()
        self.head, self.body, self.act, self.adds = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), activation, adds

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.head(x))
        z: Tensor = self.body(y)
        return z + y if self.adds else z


@pytest.mark.parametrize(
    ("activation", "adds", "moved"),
    [
        (nn.ReLU(), False, 3 + 4 + 4 + 4),
        (nn.Tanh(), False, 3 + 4 + SLOW * (4 + 4) + 4 + 4),
        # the sum reads two maps and writes one; the first is held over a layer: out and in
        (nn.ReLU(), True, 3 + 4 + 4 + 4 + SLOW * (4 + 4 + 4) + 2 * 4),
    ],
    ids=["relu", "tanh", "sum"],
)
def test_bytes_by_hand(activation: nn.Module, adds: bool, moved: float) -> None:
    traced = trace(Small(activation, adds), {"body": ("*",)})
    roles = {"body": ("weight", "activation", "skip") if adds else ("weight", "activation")}
    policy = uniform("8/8/8", roles, formats=INFO.formats, output=INFO.output)
    assert work(QuantizationPlan(traced, policy, Execution(8)), (20, 10), SLOW) == (200 * moved, 200 * (3 * 4 + 4 * 4))
    floats = Policy((("body", StageQuant()),))
    assert work(QuantizationPlan(traced, floats, Execution(8)), (20, 10), SLOW) == (4 * 200 * moved, 4 * 200 * (3 * 4 + 4 * 4))


def frame_ms(model: str, scale: int, bits: str = "8/8/8", frame: tuple[int, int] = (640, 360)) -> float:
    traced = trace(fresh_model(model, scale).eval(), model_info(model).patterns)
    policy = uniform(bits, model_info(model).stages, formats=INFO.formats, output=INFO.output)
    return milliseconds(QuantizationPlan(traced, policy, execution_on("npu-uint8")), frame, SYNAPTICS)


def test_the_known_network_takes_its_published_time() -> None:
    """Ayazoglu 2021, table 3: 44.85 ms; a quarter of the pixels, a quarter of it."""
    assert frame_ms("xlsr", 3) == pytest.approx(44.85, rel=1e-9)
    assert frame_ms("xlsr", 3, frame=(320, 180)) == pytest.approx(44.85 / 4, rel=1e-9)
    assert frame_ms("xlsr", 3, "32/32/32") == pytest.approx(4 * 44.85, rel=1e-9)


def test_what_the_paper_calls_slow_is() -> None:
    """A network without sums is far faster than one of as many multiplications with them: all activations are clips or PReLU."""
    assert frame_ms("srresnet", 4) > 102.6 * 44.85  # its multiplications alone: 511.07e9 against 4.98e9
    torch.manual_seed(0)
    plain, summed = (trace(Small(nn.ReLU(), adds), {"body": ("*",)}) for adds in (False, True))
    exact = Policy((("body", StageQuant()),))
    times = [milliseconds(QuantizationPlan(each, exact, Execution(8)), (64, 64), SYNAPTICS) for each in (plain, summed)]
    assert times[1] > 10 * times[0]
