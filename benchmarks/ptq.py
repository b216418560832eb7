"""Which optional steps improve post-training quantization: GPTQ, equalization, bias correction, dynamic ranges.

python benchmarks/ptq.py --eval-data Set5     PSNR of every clipping rule, width and granularity, with and without each
python benchmarks/ptq.py --steps 100          the same when learned scales are trained after it, as a search's trials do

Equalization (Nagel et al. 2019): two layers with nothing but a positively homogeneous activation between them (ReLU and
PReLU are) share their channels' ranges, section 4.1. Correction: what quantization adds to the mean of a layer's output is
taken from its bias, measured on the calibration images layer by layer, section 4.2 and appendix D. Dynamic: activations and
skips have the full range of each image's own tensor; the clipping rule is that of the weights. Rounded: each column's
rounding error is made up for by columns that are not rounded yet, GPTQ (Frantar et al. 2023).
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import itertools
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from autoq.config.policy import Granularity, Policy, uniform
from autoq.config.spec import TrialSpec
from autoq.export.onnx import export_graph
from autoq.graph.bias_correction import channel_means, correct_biases
from autoq.graph.loading import load
from autoq.graph.operations import is_activation
from autoq.graph.quantize import Quantized, collect
from autoq.graph.rounding import round_weights
from autoq.graph.trace import Traced, nodes_by_name
from autoq.images.data import calibration_patches, make_pair, train_images
from autoq.quantizers.base import Quantizer
from autoq.training.qat import Training
from autoq.trial.run import evaluate
from autoq.tuning.options import default_scale
from benchmarks.documents import reserve_output
from benchmarks.runs import METRICS, Run, absolute, context_of, file_quality, float_graph, in_torch, measured

MODELS = ("srresnet", "srgan", "xlsr")
BITS = ("8/8/8", "6/6/8", "4/8/8", "4/4/8")
CLIPPINGS = ("minmax", "percentile", "mse")
GRANULARITIES: tuple[Granularity, ...] = ("tensor", "channel")
STEPS = {
    "plain": (),
    "equalized": ("equalize",),
    "corrected": ("correct",),
    "both": ("equalize", "correct"),
    "rounded": ("round",),
    "rounded+corrected": ("round", "correct"),
    "dynamic": ("dynamic",),
}
ROUNDS = 20
"""Of equalization: chains of pairs settle by then."""

HOMOGENEOUS = (nn.ReLU, nn.LeakyReLU, nn.PReLU)
TABLE = Path(__file__).parent / "tables" / "ptq.csv"


@dataclass(frozen=True)
class PTQ(Run):
    """Quantized without training, with some of the optional steps."""

    steps: tuple[str, ...] = ()

    def values(self) -> dict[str, float]:
        context, graph = context_of(self.spec), float_graph(self.spec)
        images = calibration_patches([make_pair(image, self.spec.scale) for image in train_images(self.spec.data)], self.spec.seed)
        if "equalize" in self.steps:
            traced = equalized_network(context.traced)
            context = dataclasses.replace(context, traced=traced, statistics=collect(traced, images))
            graph = export_graph(traced)
        quantized = context.quantized(self.policy)
        if "round" in self.steps:
            round_weights(quantized, context.curvatures)
        if "correct" in self.steps:
            correct_biases(quantized, channel_means(context.traced, torch.cat(images)), torch.cat(images))
        Training(context, quantized).advance(self.spec.steps)
        context = dataclasses.replace(context, metrics=METRICS)
        values = (
            evaluate(context, in_torch(dynamic(quantized))) if "dynamic" in self.steps else file_quality(context, quantized, graph)
        )
        return {name: values[name] for name in METRICS}


# ---------------------------------------------------------------- cross-layer equalization


def pairs(traced: Traced) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Convolutions of which the second alone reads the first, through an activation or directly."""
    nodes, layers = nodes_by_name(traced.module), {layer.node for layer in traced.layers}
    for layer in traced.layers:
        first = nodes[layer.node]
        reader = next(iter(first.users))
        between = first
        if is_activation(traced.module, reader) and isinstance(traced.module.get_submodule(str(reader.target)), HOMOGENEOUS):
            between, reader = reader, next(iter(reader.users))
        plain = first.target is F.conv2d and reader.target is F.conv2d and reader.name in layers and reader.args[6] == 1
        if plain and len(first.users) == len(between.users) == 1:
            yield first, reader


@torch.no_grad()
def equalized_network(traced: Traced) -> Traced:
    """The same network with the ranges of paired layers made equal, channel by channel: s = sqrt(r1 r2) / r2, equation 11."""
    traced = Traced(copy.deepcopy(traced.module), traced.layers, traced.sites)
    for _ in range(ROUNDS):
        for first, second in pairs(traced):
            one, two = (parameter(traced, node, 1) for node in (first, second))
            r1, r2 = one.abs().amax((1, 2, 3)), two.abs().amax((0, 2, 3))
            s = torch.where((r1 > 0) & (r2 > 0), (r1 * r2).sqrt() / r2, torch.ones_like(r1))
            one.div_(s[:, None, None, None])
            if first.args[2] is not None:
                parameter(traced, first, 2).div_(s)
            two.mul_(s[:, None, None])
    return traced


def parameter(traced: Traced, convolution: fx.Node, argument: int) -> nn.Parameter:
    """The weight (argument 1) or the bias (2) of a convolution."""
    node = convolution.args[argument]
    assert isinstance(node, fx.Node)
    return traced.module.get_parameter(str(node.target))


# ---------------------------------------------------------------- dynamic ranges


def follow(quantizer: Quantizer, x: Tensor) -> None:
    """Give a quantizer the range of the tensor about to be quantized."""
    *_, quantizer.initial_scale, quantizer.initial_zero_point = quantizer.start(x.amin()[None], x.amax()[None])


def dynamic(quantized: Quantized) -> fx.GraphModule:
    """The network with dynamic activations and skips, in simulation: no runtime computes their integers."""
    for placed in quantized.placed:
        if placed.placement.sites[0].role in ("activation", "skip"):
            quantizer = quantized.module.get_submodule(placed.quantizer)
            assert isinstance(quantizer, Quantizer)
            quantizer.observe = functools.partial(follow, quantizer)  # type: ignore[method-assign]  # in place, as biases refer to it
    return quantized.module.eval()


# ---------------------------------------------------------------- the table


def with_granularity(policy: Policy, granularity: Granularity) -> Policy:
    return policy.mapped(lambda role, quant: dataclasses.replace(quant, granularity=granularity) if role == "weight" else quant)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--bits", nargs="+", default=BITS)
    parser.add_argument("--clippings", nargs="+", default=CLIPPINGS)
    parser.add_argument("--steps", type=int, default=0, help="of training after it; ranges are then not dynamic")
    parser.add_argument("--data", type=absolute, help="folder of calibration images; bundled photographs if absent")
    parser.add_argument("--eval-data", type=absolute, help="folder of evaluation images; bundled photographs if absent")
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    tell = reserve_output(options.json)
    quantizer, methods = ("lsq", list(STEPS)[:-1]) if options.steps else ("minmax", list(STEPS))
    figures: dict[str, float] = {}
    for model in options.models:
        scale = default_scale(model)
        spec = TrialSpec(
            model=model, scale=scale, data=options.data, eval_data=options.eval_data, test_data=options.eval_data,
            steps=options.steps,
        )  # fmt: skip
        stages = load(model, scale).roles
        for granularity, bits in itertools.product(GRANULARITIES, options.bits):
            runs = [
                PTQ(
                    f"{model} {bits} {granularity} {clipping} {name}",
                    spec,
                    with_granularity(uniform(bits, stages, quantizer, clipping), granularity),
                    STEPS[name],
                )
                for clipping in options.clippings
                for name in methods
            ]
            psnr = [values["psnr"] for values in measured(options.table, runs)]
            lines = [psnr[start : start + len(methods)] for start in range(0, len(psnr), len(methods))]
            best = max(line[0] for line in lines)
            for clipping, line in zip(options.clippings, lines, strict=True):
                words = "  ".join(f"{name} {value:.2f}" for name, value in zip(methods, line, strict=True))
                if not options.json:
                    print(f"{model:9} {bits} per {granularity:8} {clipping:11} {words}")
            for number, name in enumerate(methods):
                key = f"{model} {bits} {granularity} {name}"
                figures[f"psnr {key}"] = round(max(line[number] for line in lines), 3)
                figures[f"gain {key}"] = round(max(line[number] for line in lines) - best, 3)
    for name in methods[1:]:
        for granularity in GRANULARITIES:
            gains = [value for key, value in figures.items() if key.startswith("gain") and key.endswith(f"{granularity} {name}")]
            figures[f"gain {granularity} {name}"] = round(statistics.mean(gains), 3)
            if not options.json:
                print(f"{name}, per {granularity}: the best rule's PSNR changes by {statistics.mean(gains):+.3f} dB on average "
                      f"({min(gains):+.3f} to {max(gains):+.3f})")  # fmt: skip
    if options.json:
        tell({"bench": "ptq", "figures": figures})


if __name__ == "__main__":
    main()
