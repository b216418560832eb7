"""What training brings: QAT at 8/8/8 held against float, QAT at 4/4/8 against static post-training quantization.

python benchmarks/qat_gain.py --eval-data Set5     SRResNet x4 from the bundled weights; goes on where it was stopped

PTQ is the best of the clipping rules, judged on the evaluation images themselves; QAT starts from the one of --start.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from autoq.config.policy import all_float, uniform
from autoq.graph.loading import load
from autoq.quantizers import CLIPPING_NAMES
from benchmarks.documents import reserve_output
from benchmarks.runs import Run, add_options, measured, spec_of

NEAR, NARROW = "8/8/8", "4/4/8"
MOST_LOST = 0.1
"""dB that QAT at NEAR may lose on float."""

LEAST_WON = 1.0
"""dB that QAT at NARROW must win on PTQ."""

TABLE = Path(__file__).parent / "tables" / "qat-gain-srresnet-x4.csv"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, TABLE, steps=100, seeds=1)
    parser.add_argument("--quantizer", default="lsq", help="of the trainings")
    parser.add_argument("--clippings", nargs="+", choices=CLIPPING_NAMES, default=CLIPPING_NAMES, help="of PTQ")
    parser.add_argument("--start", choices=CLIPPING_NAMES, default="minmax", help="clipping that the trainings start from")
    options = parser.parse_args()
    tell = reserve_output(options.json)
    stages = load(options.model, options.scale, options.weights).roles
    runs = []
    for seed in range(options.seeds):
        spec = spec_of(options, seed)
        untrained = spec.model_copy(update={"steps": 0})
        runs.append(Run("float", untrained, all_float(stages)))
        for bits in (NEAR, NARROW):
            runs += [Run(f"PTQ {rule}", untrained, uniform(bits, stages, "minmax", rule)) for rule in options.clippings]
        runs += [Run("QAT", spec, uniform(bits, stages, options.quantizer, options.start)) for bits in (NEAR, NARROW)]
    psnr = np.array([values["psnr"] for values in measured(options.table, runs)]).reshape(options.seeds, -1).mean(0)
    rules = len(options.clippings)
    exact, ptq, qat = psnr[0], psnr[1 : 1 + 2 * rules].reshape(2, rules), psnr[1 + 2 * rules :]
    figures = {"psnr_float": exact, "qat_drop": exact - qat[0], "qat_gain": qat[1] - ptq[1].max()}
    for bits, of_rules, trained in zip((NEAR, NARROW), ptq, qat, strict=True):
        figures |= {f"psnr_ptq_{rule}_{bits}": value for rule, value in zip(options.clippings, of_rules, strict=True)}
        figures |= {f"psnr_ptq_{bits}": of_rules.max(), f"psnr_qat_{bits}": trained}
    figures = {name: round(float(value), 3) for name, value in figures.items()}
    if options.json:
        tell({"bench": "qat_gain", "figures": figures})
        return
    print(f"float {exact:26.3f} dB")
    for bits, of_rules, trained in zip((NEAR, NARROW), ptq, qat, strict=True):
        for rule, value in zip(options.clippings, of_rules, strict=True):
            print(f"{bits} PTQ, {rule:15} {value:9.3f} dB")
        print(f"{bits} QAT, {options.steps:4} steps {trained:14.3f} dB")
    print(f"QAT at {NEAR} loses {figures['qat_drop']:.3f} dB (no more than {MOST_LOST}: {holds(figures['qat_drop'] <= MOST_LOST)})")
    print(
        f"QAT at {NARROW} wins {figures['qat_gain']:.3f} dB on PTQ ({LEAST_WON} or more: {holds(figures['qat_gain'] >= LEAST_WON)})"
    )


def holds(found: bool) -> str:
    return "holds" if found else "does not hold"


if __name__ == "__main__":
    main()
