"""PSNR of every bundled checkpoint on folders of test images: Y, border = scale, low resolution by bicubic reduction.

python benchmarks/weights.py Set5 Set14            compare with what the records say
python benchmarks/weights.py Set5 Set14 --write    write the figures into the records
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from autoq.images.data import make_pair, read_folder, resize, to_pixels, to_tensor
from autoq.metrics.quality import psnr
from autoq.networks import MODELS, build_model, bundled_record, record_path
from benchmarks.documents import reserve_output
from benchmarks.runs import original


@torch.no_grad()
def measure(network: nn.Module, scale: int, folder: Path) -> float:
    """Mean PSNR (dB) of a network over a folder."""
    pairs = [make_pair(image, scale) for image in read_folder(folder)]
    return float(np.mean([psnr(to_pixels(network(to_tensor(pair.low))), original(pair), scale) for pair in pairs]))


def bicubic(scale: int, folder: Path) -> float:
    """Mean PSNR (dB) of bicubic interpolation over a folder."""
    pairs = [make_pair(image, scale) for image in read_folder(folder)]
    return float(np.mean([psnr(resize(pair.low, *original(pair).shape[:2]), original(pair), scale) for pair in pairs]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--write", action="store_true", help="write the figures into the records")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    tell = reserve_output(options.json)
    figures: dict[str, float] = {}
    for model, info in MODELS.items():
        for scale, file in info.bundled.items():
            record = bundled_record(file)
            for folder in options.folders:
                found = measure(build_model(model, scale), scale, folder)
                figures[f"{model}_x{scale}_{folder.name}"] = round(found, 3)
                if not options.json:
                    stated = record.get("psnr", {}).get(folder.name)
                    plain = bicubic(scale, folder)
                    print(f"{model:10} x{scale} {folder.name:8} {found:7.3f} dB  bicubic {plain:7.3f}  stated {stated}")
                if options.write:
                    record.setdefault("psnr", {})[folder.name] = round(found, 3)
            if options.write:
                record_path(file).write_text(json.dumps(record, indent=2) + "\n")
    if options.json:
        tell({"bench": "weights", "figures": figures})


if __name__ == "__main__":
    main()
