"""What FQSR's two components bring: fixed ranges, learned intervals, and these with the calibration loss (SQCL).

python benchmarks/ablation.py --eval-data Set5     SRResNet x4 at 4/4/32, three seeds each; goes on where it was stopped

Every configuration is trained from the bundled weights on the same patches; the differences are held against table 5 of
Wang et al. 2021 (Fully Quantized Image Super-Resolution Networks).
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1]))

from autoq.config.policy import Granularity, Policy, Role, TensorQuant, uniform
from autoq.graph.loading import load
from benchmarks.documents import reserve_output
from benchmarks.runs import Run, add_options, measured, spec_of

BITS = "4/4/32"
SQCL = 0.3
STEPS = ("learned interval", "SQCL")
"""What each configuration adds to the one before it; the first is fixed ranges."""

PUBLISHED = (35.536, 36.372, 36.854)
"""Wang et al. 2021, table 5: PSNR (dB) on Set5 of SRResNet x2 at 4/4/32, without either, with the first, with both."""

TABLE = Path(__file__).parent / "tables" / "ablation-srresnet-x4.csv"


def configurations(options: argparse.Namespace) -> dict[str, tuple[Policy, float]]:
    """Name -> policy and weight of SQCL, each with one component more than the one before."""
    stages = load(options.model, options.scale, options.weights).roles
    fixed, learned = (as_published(uniform(BITS, stages, quantizer), options.granularity) for quantizer in ("minmax", "fqsr"))
    return {"fixed ranges": (fixed, 0.0), f"+ {STEPS[0]}": (learned, 0.0), f"+ {STEPS[1]}": (learned, options.sqcl)}


def as_published(policy: Policy, granularity: Granularity) -> Policy:
    """A policy on the grids of equation 3: one range for the weights of a layer, feature maps without a zero point."""

    def changed(role: Role, quant: TensorQuant) -> TensorQuant:
        if role == "weight":
            return replace(quant, granularity=granularity)
        return replace(quant, signed=True) if role == "activation" else quant  # after a PReLU data are signed

    return policy.mapped(changed)


def interval(gains: np.ndarray) -> tuple[float, float, float]:
    """Mean of paired differences and its 95 % interval (Student's)."""
    mean, spread = float(gains.mean()), float(stats.sem(gains))
    half = float(stats.t.ppf(0.975, len(gains) - 1)) * spread
    return mean, mean - half, mean + half


def verdict(low: float, mean: float, high: float) -> str:
    """Whether a component helps, as published: both of them do."""
    word = "agrees" if mean > 0 else "differs"
    return f"{word}, within noise" if low <= 0 <= high else word


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, TABLE, steps=100, seeds=3)
    parser.add_argument("--sqcl", type=float, default=SQCL, help="weight of the calibration loss")
    parser.add_argument("--granularity", choices=("tensor", "channel"), default="tensor", help="of weights")
    options = parser.parse_args()
    tell = reserve_output(options.json)
    chosen = configurations(options)
    runs = [
        Run(name, spec_of(options, seed).model_copy(update={"sqcl": sqcl}), policy)
        for seed in range(options.seeds)
        for name, (policy, sqcl) in chosen.items()
    ]
    found = np.array([values["psnr"] for values in measured(options.table, runs)]).reshape(options.seeds, -1)
    figures: dict[str, float] = {}
    lines = []
    for name, values, published in zip(chosen, found.T, PUBLISHED, strict=True):
        mean, low, high = interval(values)
        figures |= {f"psnr_{name}": round(mean, 3), f"low_{name}": round(low, 3), f"high_{name}": round(high, 3)}
        lines.append(f"{name:20} {mean:7.3f} dB [{low:.3f}, {high:.3f}]   published (x2) {published:.3f} dB")
    agree = True
    for number, name in enumerate(STEPS):
        mean, low, high = interval(found[:, number + 1] - found[:, number])
        expected = PUBLISHED[number + 1] - PUBLISHED[number]
        figures |= {f"gain_{name}": round(mean, 3), f"gain_low_{name}": round(low, 3), f"gain_high_{name}": round(high, 3)}
        agree &= mean > 0
        lines.append(
            f"{name:20} {mean:+7.3f} dB [{low:+.3f}, {high:+.3f}]   published (x2) {expected:+.3f} dB: {verdict(low, mean, high)}"
        )
    figures["agrees"] = float(agree)
    if options.json:
        tell({"bench": "ablation", "figures": figures})
        return
    print("\n".join(lines))
    print(f"The order of FQSR's table 5: {'agrees' if agree else 'differs'}")


if __name__ == "__main__":
    main()
