"""What published techniques for low bits bring in a trial's training, at equal seconds.

python benchmarks/low_bit.py --eval-data Set5      SRResNet x4 at 4/4/8 and 2/2/8, three seeds each; goes on where it was stopped

Every technique starts from the bundled weights and trains on the same patches; those whose steps take longer train fewer. A
technique is one of the product's quantizers and range estimators, or one of this file's, which the product does not have unless
they win here:

weight clipping   |w| up to a percentile of the current weights times one learned factor a layer (ODM: Hong and Lee 2024)
two bounds        separate learned bounds, moved only by what they clip (DDTB: Zhong et al. 2022)
one-sided         the range with the least squared error whose lower end is the minimum (2DQuant: Liu et al. 2024)
ranges only       weights and biases stay as they are (2DQuant's second stage)
cooperative       the calibration loss where its gradient has the sign of the output's (ODM)
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from autoq import quantizers
from autoq.config.policy import Granularity, Policy, Role, TensorQuant, uniform
from autoq.config.spec import TrialSpec
from autoq.graph.loading import load
from autoq.graph.quantize import Quantized
from autoq.quantizers import QuantizerInfo
from autoq.quantizers.base import Quantizer
from autoq.quantizers.functional import affine_parameters, positive, straight_through
from autoq.quantizers.lsq import LSQ
from autoq.quantizers.range_estimators import CANDIDATES, CLIPPINGS, Statistics
from autoq.training.qat import Training, TrainingData
from benchmarks.ablation import SQCL, interval
from benchmarks.documents import reserve_output
from benchmarks.runs import Run, add_options, context_of, file_quality, float_graph, measured, spec_of

TABLE = Path(__file__).parent / "tables" / "low-bit-srresnet-x4.csv"
METRICS = ("psnr", "fidelity")
BITS = ("4/4/8", "2/2/8")

PERCENTILE = 0.99
"""Share of a layer's |w| below the bound of weight clipping before its factor."""


# ---------------------------------------------------------------- quantizers and range estimators


class WeightClipping(LSQ):
    """u = gamma * percentile(|w|), gamma one learned factor of a layer, of the current weights; the grid is symmetric."""

    share: Tensor

    def __init__(self, quant: TensorQuant, low: Tensor, high: Tensor) -> None:
        super().__init__(quant, low, high)
        self.log_gain = nn.Parameter(torch.zeros(1))
        self.register_buffer("share", torch.zeros(0))

    def observe(self, x: Tensor) -> None:
        rows = x.detach().abs().reshape(self.initial_scale.numel(), -1)
        bound = rows.kthvalue(max(1, math.ceil(PERCENTILE * rows.shape[1])), dim=1).values / self.qmax
        if not self.share.numel():  # the range estimator's range is where gamma begins
            self.share = (self.initial_scale.mean() / positive(bound).mean()).reshape(1)
        self.initial_scale = positive(bound * self.share)


class Bound(nn.Module):
    """A learned shift in units of the initial range."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(1))


class TwoBounds(Quantizer):
    """clip(x, l, u), then rounding; the gradient of a bound is the sum of those of the values it clips."""

    def __init__(self, quant: TensorQuant, low: Tensor, high: Tensor) -> None:
        super().__init__(quant, low, high)
        self.lower, self.upper = Bound(), Bound()

    def _bounds(self) -> tuple[Tensor, Tensor]:
        whole = self.initial_scale * (self.qmax - self.qmin)
        low = -(self.initial_zero_point - self.qmin) * self.initial_scale
        return low + self.lower.offset * whole, low + (1 + self.upper.offset) * whole

    def _grid(self) -> tuple[Tensor, Tensor]:
        low, high = (bound.detach() for bound in self._bounds())
        return affine_parameters(low, high, self.quant.bits, self.quant.signed)

    @property
    def scale(self) -> Tensor:
        return self.at_least(self._grid()[0])

    @property
    def zero_point(self) -> Tensor:
        return self._grid()[1]

    def simulate(self, x: Tensor) -> Tensor:
        low, high = self._bounds()
        clipped = torch.minimum(torch.maximum(x, low), high)
        return straight_through(self._quantized(clipped), clipped)


def one_sided(statistics: Statistics, bits: int, signed: bool) -> tuple[Tensor, Tensor]:
    """[minimum, u] with the u of the least squared error among 64."""
    low, best, least = statistics.low, statistics.high, torch.full_like(statistics.low, torch.inf)
    levels = 2**bits - 1
    for step in range(CANDIDATES, 0, -1):
        high = low + (statistics.high - low) * step / CANDIDATES
        scale = ((high - low) / levels).clamp(min=1e-9)[:, None]
        found = ((statistics.sample - low[:, None]) / scale).round().clamp(0, levels) * scale + low[:, None]
        error = (found - statistics.sample).square().mean(1)
        best, least = torch.where(error < least, high, best), torch.minimum(error, least)
    return low, best.clamp(min=0)


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """This file's quantizers and range estimators are known under their names within."""
    every = range(2, 17)
    clipping = QuantizerInfo(f"{__name__}:WeightClipping", True, every, "Hong and Lee 2024", ("weight",))
    bounds = QuantizerInfo(f"{__name__}:TwoBounds", True, every, "Zhong et al. 2022", ("unsigned",))
    with (
        mock.patch.dict(quantizers.QUANTIZERS, {"weight clipping": clipping, "two bounds": bounds}),
        mock.patch.dict(CLIPPINGS, {"one-sided": one_sided}),
        mock.patch.object(quantizers, "CLIPPING_NAMES", (*CLIPPINGS, "one-sided")),
    ):
        yield


# ---------------------------------------------------------------- trainings


class RangesOnly(Training):
    """Only learned ranges are trained."""

    def __init__(self, data: TrainingData, quantized: Quantized) -> None:
        super().__init__(data, quantized)
        ranges = {id(parameter) for quantizer in self.quantizers for parameter in quantizer.parameters()}
        for parameter in self.module.parameters():
            parameter.requires_grad_(id(parameter) in ranges)


class Cooperative(Training):
    """The calibration loss changes a parameter only where its gradient has the sign of the output's."""

    def differentiate(self, loss: Tensor) -> None:
        parameters = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        calibration = self.data.spec.sqcl * self.calibration.taken()
        loss.backward(retain_graph=True)
        for parameter, more in zip(parameters, torch.autograd.grad(calibration, parameters, allow_unused=True), strict=True):
            if more is not None and parameter.grad is not None:
                parameter.grad += more * (more.sign() == parameter.grad.sign())


@dataclass(frozen=True)
class Technique:
    """What a run trains with.

    Attributes:
        weight: Quantizer and range estimator of weights.
        activation: The same of activations and skips.
        granularity: Of weights.
        training: The training.
        sqcl: Weight of the calibration loss.
        steps: Share of the steps that fit in the seconds of LSQ's.
    """

    weight: tuple[str, str] = ("lsq", "mse")
    activation: tuple[str, str] = ("lsq", "mse")
    granularity: Granularity = "channel"
    training: type[Training] = Training
    sqcl: float = 0.0
    steps: float = 1.0

    def policy(self, bits: str, options: argparse.Namespace) -> Policy:
        roles = load(options.model, options.scale, options.weights).roles
        return uniform(bits, roles).mapped(self._format)

    def _format(self, role: Role, quant: TensorQuant) -> TensorQuant:
        quantizer, clipping = self.weight if role == "weight" else self.activation
        granularity = self.granularity if role == "weight" else quant.granularity
        return replace(quant, quantizer=quantizer, clipping=clipping, granularity=granularity)


TECHNIQUES = {
    "lsq": Technique(),
    "lsq, minmax": Technique(("lsq", "minmax"), ("lsq", "minmax")),
    "lsq, minmax and percentile": Technique(("lsq", "minmax"), ("lsq", "percentile")),
    "lsq+": Technique(activation=("lsq+", "mse")),
    "fqsr": Technique(("fqsr", "mse"), ("fqsr", "mse")),
    "lsq, one range a layer": Technique(granularity="tensor"),
    "weight clipping": Technique(("weight clipping", "mse"), granularity="tensor"),
    "weight clipping by channel": Technique(("weight clipping", "mse")),
    "two bounds": Technique(activation=("two bounds", "mse"), steps=0.7),
    "one-sided": Technique(activation=("lsq", "one-sided")),
    "ranges only": Technique(training=RangesOnly),
    "sqcl": Technique(sqcl=SQCL, steps=0.75),
    "cooperative": Technique(training=Cooperative, sqcl=SQCL, steps=0.6),
}


@dataclass(frozen=True)
class LowBitRun(Run):
    """A run of a technique."""

    technique: Technique
    most_steps: int

    def values(self) -> dict[str, float]:
        plain = context_of(self.spec.model_copy(update={"sqcl": 0.0, "steps": self.most_steps}))  # the same for every technique
        context = dataclasses.replace(plain, spec=self.spec)
        torch.manual_seed(self.spec.seed)
        training = self.technique.training(context, context.quantized(self.policy))
        training.advance(self.spec.steps)
        values = file_quality(context, training.quantized, float_graph(self.spec))
        return {name: values[name] for name in METRICS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, TABLE, steps=100, seeds=3)
    parser.add_argument("--bits", nargs="+", default=BITS, help="policies")
    parser.add_argument("--techniques", nargs="+", default=[*TECHNIQUES], choices=TECHNIQUES)
    options = parser.parse_args()
    tell = reserve_output(options.json)
    figures: dict[str, float] = {}
    for bits in options.bits:
        runs = [
            LowBitRun(name, _spec(options, seed, technique), technique.policy(bits, options), technique, options.steps)
            for seed in range(options.seeds)
            for name, technique in TECHNIQUES.items()
            if name in options.techniques
        ]
        with registered():
            found = measured(options.table, runs, METRICS)
        by_name = {name: [line for run, line in zip(runs, found, strict=True) if run.name == name] for name in options.techniques}
        for name, lines in by_name.items():
            text = f"{bits}  {name:28}"
            for metric in METRICS:
                values = np.array([line[metric] for line in lines])
                gains = values - np.array([line[metric] for line in by_name[options.techniques[0]]])
                mean, low, high = interval(gains)
                text += f" {metric} {values.mean():7.3f} dB ({mean:+.3f} [{low:+.3f}, {high:+.3f}])"
                figures |= {
                    f"{bits}_{name}_{metric}": round(float(values.mean()), 3),
                    f"{bits}_{name}_{metric}_gain": round(mean, 3),
                }
            seconds = min(line["seconds"] for line in lines)  # the first run of a seed also prepares the images
            figures[f"{bits}_{name}_seconds"] = round(seconds, 1)
            if not options.json:
                print(f"{text}  {seconds:.0f} s", flush=True)
    if options.json:
        tell({"bench": "low_bit", "figures": figures})


def _spec(options: argparse.Namespace, seed: int, technique: Technique) -> TrialSpec:
    spec = spec_of(options, seed)
    return spec.model_copy(update={"sqcl": technique.sqcl, "steps": max(1, round(technique.steps * spec.steps))})


if __name__ == "__main__":
    main()
