"""What short trials gain from where their patches are cut: uniform, proportional to complexity, above a threshold of it.

python benchmarks/sampling.py --eval-data Set14     PSNR of equal policies after equal steps, three seeds each
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from autoq.config.options import Sampling
from autoq.config.policy import uniform
from autoq.config.spec import TrialSpec
from autoq.networks import model_info
from autoq.system.processor import available_cores
from autoq.trial.context import prepare
from autoq.trial.run import trained
from benchmarks.documents import reserve_output
from benchmarks.runs import file_quality, float_graph

POLICIES = ("4/4/8", "6/6/8")


def psnrs(spec: TrialSpec) -> list[float]:
    """PSNR (dB) of every policy after the spec's steps."""
    context = prepare(spec)
    stages = model_info(spec.model).stages
    found = []
    for bits in POLICIES:
        quantized = trained(context, uniform(bits, stages, "lsq", "mse"), spec.steps)
        found.append(file_quality(context, quantized, float_graph(spec))["psnr"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="srresnet")
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--data", type=lambda text: Path(text).resolve())
    parser.add_argument("--eval-data", type=lambda text: Path(text).resolve())
    parser.add_argument("--steps", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    tell = reserve_output(options.json)
    figures: dict[str, float] = {}
    for steps in options.steps:
        runs: dict[str, list[list[float]]] = {}
        for sampling in get_args(Sampling):
            for seed in range(options.seeds):
                spec = TrialSpec(
                    model=options.model, scale=options.scale, data=options.data,
                    eval_data=options.eval_data, test_data=options.eval_data, steps=steps,
                    seed=seed, sampling=sampling, threads=available_cores(),
                )  # fmt: skip
                runs.setdefault(sampling, []).append(psnrs(spec))
        plain = np.array(runs["uniform"])
        for sampling, found in runs.items():
            gains = np.array(found) - plain
            for number, bits in enumerate(POLICIES):
                gain, spread = gains[:, number].mean(), gains[:, number].std(ddof=1) / np.sqrt(options.seeds)
                key = f"{sampling}_{bits}_{steps}"
                figures[f"psnr_{key}"] = round(float(np.mean([run[number] for run in found])), 3)
                figures[f"gain_{key}"] = round(float(gain), 3)
                if not options.json:
                    print(
                        f"{steps:4} steps {bits} {sampling:13} {figures[f'psnr_{key}']:7.3f} dB, gain {gain:+.3f} +- {spread:.3f}"
                    )
    if options.json:
        tell({"bench": "sampling", "figures": figures})


if __name__ == "__main__":
    main()
