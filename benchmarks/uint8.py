"""What a float XLSR x3 loses as uint8 per tensor: quantized without training, its file run by ONNX Runtime.

python benchmarks/uint8.py Set14                                    the bundled weights
python benchmarks/uint8.py Set14 --weights xlsr_x3_cxzhou95.pt      a published checkpoint
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from autoq.config.policy import uniform
from autoq.export.onnx import export_graph
from autoq.graph.inference import upscale
from autoq.graph.quantize import collect, quantize
from autoq.graph.trace import trace
from autoq.images.data import Image, calibration_patches, make_pair, read_folder, train_images
from autoq.images.pixels import to_input, to_pixels
from autoq.metrics.quality import psnr
from autoq.networks import model_info, staged_model
from autoq.system.processor import available_cores
from autoq.targets import load_target, target_info
from autoq.trial.context import execution_on, runtime_model
from benchmarks.documents import reserve_output
from benchmarks.runs import original

MODEL, SCALE, TARGET = "xlsr", 3, "npu-uint8"
CLIPPINGS = ("minmax", "percentile", "mse")


def psnrs(
    weights: Path | None, images: Sequence[Image], clippings: Sequence[str] = CLIPPINGS, threads: int = 1
) -> dict[str, float]:
    """PSNR (dB, Y, border = scale): `float`, and in uint8 by clipping rule. Ranges come from the bundled photographs."""
    network, patterns = staged_model(MODEL, SCALE, weights)
    traced, info = trace(network, patterns), target_info(TARGET)
    patches = calibration_patches([make_pair(image, SCALE) for image in train_images(None)], 0)
    graph, statistics = export_graph(traced), collect(traced, patches)
    pairs = [make_pair(image, SCALE) for image in images]

    def mean(outputs: Sequence[np.ndarray]) -> float:
        found = [psnr(to_pixels(output[0]), original(pair), SCALE) for output, pair in zip(outputs, pairs, strict=True)]
        return float(np.mean(found))

    values = {"float": mean([upscale(network, pair.low, "cpu").numpy() for pair in pairs])}
    for clipping in clippings:
        policy = uniform("8/8/8", model_info(MODEL).stages, "minmax", clipping, info.formats, info.output)
        file = runtime_model(TARGET, graph, quantize(traced, policy, statistics, execution_on(TARGET)))
        run = load_target(TARGET).load(file.SerializeToString(), threads)
        values[clipping] = mean([run(to_input(pair.low)) for pair in pairs])
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", type=Path, help="a checkpoint of XLSR x3; the bundled one if absent")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    tell = reserve_output(options.json)
    found = psnrs(options.weights, read_folder(options.folder), threads=available_cores())
    figures = {f"psnr_{name}": round(value, 3) for name, value in found.items()}
    figures |= {f"loss_{name}": round(found["float"] - value, 3) for name, value in found.items() if name != "float"}
    if options.json:
        tell({"bench": "uint8", "figures": figures})
    else:
        print("\n".join(f"{name:16} {value:7.3f} dB" for name, value in figures.items()))


if __name__ == "__main__":
    main()
