"""Do crops rank policies as whole images do? Fidelity of random policies without training on both, and their rank correlation.

python benchmarks/crops.py --model srgan --eval-data DIR      crops that a search would choose, and the whole folder
python benchmarks/crops.py --model srgan                      of the photographs that trials are judged on by default

The simulated network in torch is looked at, in one process; seconds are what each set takes for one policy.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from autoq.config.policy import Policy
from autoq.config.spec import TrialSpec
from autoq.graph.inference import upscale
from autoq.images import crops
from autoq.images.data import Pair, to_pixels
from autoq.metrics.quality import fidelity
from autoq.trial.context import prepare
from autoq.tuning.options import default_scale, search_space

POLICIES = 16


def random_policies(spec: TrialSpec, count: int) -> list[Policy]:
    """Policies drawn from the bundled space, every role of every stage by itself."""
    space, draw = search_space(spec), random.Random(0)
    stages = {stage: list(space.stage_quants(stage)) for stage in space.choices}
    return [Policy(tuple((stage, draw.choice(quants)) for stage, quants in stages.items())) for _ in range(count)]


def outputs(network: torch.nn.Module, pairs: Sequence[Pair]) -> list[np.ndarray]:
    return [to_pixels(upscale(network, pair.low, "cpu")) for pair in pairs]


def agreement(spec: TrialSpec, count: int) -> dict[str, float]:
    """Spearman of mean fidelity between the crops and the whole images of a spec, and what each set costs a policy."""
    context = prepare(spec)
    whole = spec.model_copy(update={"eval_crops": "all"})
    sets = {"crops": crops.searched(spec)[1], "whole": crops.searched(whole)[1]}
    expected = {name: outputs(context.traced.module, pairs) for name, pairs in sets.items()}
    means: dict[str, list[float]] = {name: [] for name in sets}
    seconds = dict.fromkeys(sets, 0.0)
    for number, policy in enumerate(random_policies(spec, count)):
        module = context.quantized(policy).module.eval()
        for name, pairs in sets.items():
            begun = time.perf_counter()
            found = outputs(module, pairs)
            means[name].append(float(np.mean([fidelity(*both) for both in zip(found, expected[name], strict=True)])))
            seconds[name] += time.perf_counter() - begun
        print(f"policy {number}: crops {means['crops'][-1]:.2f} dB, whole {means['whole'][-1]:.2f} dB", file=sys.stderr)
    figures = {"spearman": float(spearmanr(means["crops"], means["whole"]).statistic)}
    for name, pairs in sets.items():
        figures |= {
            f"{name}": len(pairs),
            f"{name}_megapixels": sum(output.shape[0] * output.shape[1] for output in expected[name]) / 1e6,
            f"{name}_seconds": seconds[name] / count,
        }
    return {name: round(value, 3) for name, value in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="srgan")
    parser.add_argument("--scale", type=int)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--data", type=Path, help="training images, which ranges come from; photographs if absent")
    parser.add_argument("--eval-data", type=Path, help="folder of images; photographs if absent")
    parser.add_argument("--crops", type=int, default=crops.CROPS)
    parser.add_argument("--policies", type=int, default=POLICIES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    spec = TrialSpec(
        model=options.model, scale=options.scale or default_scale(options.model), weights=options.weights, data=options.data,
        eval_data=options.eval_data, test_data=options.eval_data, eval_crops=options.crops, threads=options.threads, steps=0,
    )  # fmt: skip
    figures = agreement(spec, options.policies)
    if options.json:
        print(json.dumps({"bench": "crops", "figures": figures}, indent=2))
        return
    print(f"Spearman between {figures['crops']:.0f} crops and {figures['whole']:.0f} whole images: {figures['spearman']:.3f}")
    for name in ("crops", "whole"):
        print(f"{name:>6}: {figures[f'{name}_megapixels']:.2f} megapixels, {figures[f'{name}_seconds']:.2f} s a policy")


if __name__ == "__main__":
    main()
