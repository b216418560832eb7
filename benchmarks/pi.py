"""How much faster NIQE and the features of NRQM are than pyiqa's, with the same numbers.

python benchmarks/pi.py      squares of 256, 384 and 512 pixels of a bundled photograph, or of the first image of --eval-data
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from autoq.images.data import Image, eval_images
from autoq.metrics import filters, niqe, nrqm
from autoq.metrics.quality import import_pyiqa
from autoq.system.processor import available_cores
from benchmarks.documents import reserve_output
from benchmarks.runs import absolute

SIDES = (256, 384, 512)
T = TypeVar("T")


def timed(work: Callable[[], T], repeats: int) -> tuple[T, float]:
    """The result, and the least seconds of some runs."""
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        found = work()
        seconds.append(time.perf_counter() - begun)
    return found, min(seconds)


def pyiqas_nrqm(luma: np.ndarray) -> np.ndarray:
    """NRQM's features by pyiqa."""
    from pyiqa.archs import nrqm_arch as oracle

    image = torch.from_numpy(luma)[None, None]
    levels = oracle.get_gauss_pyramid(image / 255)
    matrices = [oracle.im2col(level, 5, "distinct") for level in levels]
    groups = (
        torch.cat([oracle.block_dct(level) for level in levels], 1),
        oracle.global_gsm(image),
        torch.cat([torch.linalg.svd(matrix, full_matrices=False)[1] for matrix in matrices], 1),
    )
    return torch.cat(groups, 1)[0].numpy()


def pyiqas_niqe(luma: np.ndarray, pristine: niqe.Pristine) -> np.ndarray:
    """NIQE by pyiqa."""
    from pyiqa.archs import niqe_arch as oracle

    mean, covariance = torch.from_numpy(pristine.mean)[None], torch.from_numpy(pristine.covariance)[None]
    return oracle.niqe(torch.from_numpy(luma)[None, None], mean, covariance).numpy()


def largest(images: list[Image]) -> np.ndarray:
    """The pixels of the first image that holds the largest square."""
    return next(image.pixels for image in images if min(image.pixels.shape[:2]) >= max(SIDES))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eval-data", type=absolute, help="folder of images; bundled photographs if absent")
    parser.add_argument("--sides", type=int, nargs="+", default=SIDES)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    tell = reserve_output(options.json)
    import_pyiqa()
    torch.set_num_threads(available_cores())
    random = np.random.default_rng(0).normal(size=(200, 36))
    pristine = niqe.Pristine(random.mean(0), np.cov(random, rowvar=False))  # any distribution takes the same time
    pixels = largest(eval_images(options.eval_data))
    figures: dict[str, float] = {}
    errors = []
    for side in options.sides:
        luma = filters.rounded_luma(pixels[:side, :side], "ycbcr")
        own, seconds = timed(lambda luma=luma: np.concatenate(nrqm.features(luma)), 3)  # type: ignore[misc]
        exact, theirs = timed(lambda luma=luma: pyiqas_nrqm(luma), 1)  # type: ignore[misc]
        errors.append(float(np.max(np.abs(own - exact) / np.maximum(np.abs(exact), 1e-12))))
        own_niqe, quick = timed(lambda luma=luma: niqe.distance(niqe.features(luma), pristine), 3)  # type: ignore[misc]
        exact_niqe, slow = timed(lambda luma=luma: pyiqas_niqe(luma, pristine), 3)  # type: ignore[misc]
        figures |= {
            f"nrqm_seconds_{side}": round(seconds, 3), f"nrqm_pyiqa_seconds_{side}": round(theirs, 3),
            f"nrqm_speedup_{side}": round(theirs / seconds, 1), f"niqe_speedup_{side}": round(slow / quick, 1),
            f"niqe_difference_{side}": abs(own_niqe - float(exact_niqe)),
        }  # fmt: skip
        if not options.json:
            print(
                f"{side}x{side}: NRQM's features {seconds:.2f} s, pyiqa {theirs:.2f} s ({theirs / seconds:.1f}x), equal to"
                f" {errors[-1]:.1e}; NIQE {quick:.3f} s, pyiqa {slow:.3f} s ({slow / quick:.1f}x)"
            )
    figures |= {"nrqm_max_rel_error": max(errors), "niqe_speedup": min(figures[f"niqe_speedup_{side}"] for side in options.sides)}
    if options.json:
        tell({"bench": "pi", "figures": figures})


if __name__ == "__main__":
    main()
