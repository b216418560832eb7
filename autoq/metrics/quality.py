"""Image quality metrics: PSNR, SSIM, fidelity, NIQE and PI.

All metrics except PI crop a border first; in a trial it is `scale` pixels wide.
"""

from __future__ import annotations

import functools
import importlib
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from skimage.color import rgb2ycbcr
from skimage.metrics import structural_similarity

from autoq.config.objectives import OBJECTIVES
from autoq.errors import MetricUnavailable
from autoq.images.data import Pair, resize
from autoq.metrics import niqe as natural
from autoq.metrics import nrqm as learned
from autoq.metrics.model_files import MODEL_FILES, metrics_folder
from autoq.system.compat import allow_torchvision

Metric = Callable[[np.ndarray, np.ndarray, int], float]

PSNR_CEILING = 100.0
"""Cap in dB for identical images: an infinite PSNR would dominate any mean, and JSON cannot hold it."""

PI_BORDER = 4
"""Border in pixels that the PIRM 2018 challenge cropped at x4."""


def without_border(pixels: np.ndarray, border: int) -> np.ndarray:
    """Crop `border` pixels from every side of an image [height, width, ...]."""
    height, width = pixels.shape[:2]
    return pixels[border : height - border, border : width - border]


def luma(pixels: np.ndarray, border: int) -> np.ndarray:
    """uint8 RGB [height, width, 3] -> Y of ITU-R BT.601 in [16, 235], float64, without the border."""
    y: np.ndarray = rgb2ycbcr(pixels)[..., 0]
    return without_border(y, border)


def psnr(output: np.ndarray, original: np.ndarray, border: int) -> float:
    """PSNR in dB on Y, peak 255, of uint8 RGB images of equal shape."""
    error = np.mean((luma(output, border) - luma(original, border)) ** 2)
    return float(10 * np.log10(255.0**2 / error)) if error else float("inf")


def fidelity(output: np.ndarray, reference: np.ndarray) -> float:
    """PSNR in dB on RGB, peak 255, capped at PSNR_CEILING. reference: the float network's output, uint8 RGB of equal shape."""
    return decibels(float(np.mean((output.astype(np.float64) - reference) ** 2)) / 255.0**2)


def decibels(mse: float) -> float:
    """PSNR in dB of a mean squared error relative to a peak of 1, capped at PSNR_CEILING."""
    return min(float(-10 * np.log10(mse)), PSNR_CEILING) if mse else PSNR_CEILING


def ssim(output: np.ndarray, original: np.ndarray, border: int) -> float:
    """SSIM on Y (Wang et al. 2004): Gaussian window of 11x11 with sigma 1.5, data range 255."""
    return float(
        structural_similarity(
            luma(output, border),
            luma(original, border),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=255,
        )
    )


def niqe(output: np.ndarray, original: np.ndarray, border: int) -> float:
    """NIQE (Mittal et al. 2013) with its published model; `original` is ignored."""
    return natural.niqe(without_border(output, border), "yiq", _pristine(_model_file("niqe")))


def pi(output: np.ndarray, original: np.ndarray, border: int) -> float:
    """Perceptual index of the PIRM 2018 challenge: ((10 - NRQM) + NIQE) / 2 on Y of YCbCr; `original` is ignored."""
    inner = without_border(output, border)
    naturalness = natural.niqe(inner, "ycbcr", _pristine(_model_file("niqe")))
    return (10 - learned.nrqm(inner, "ycbcr", _regression(_model_file("nrqm"))) + naturalness) / 2


@dataclass(frozen=True)
class MetricInfo:
    """A metric.

    Attributes:
        function: Maps (output, original, border) to the metric's value.
        models: The published models that it needs, keys of MODEL_FILES.
        least: Minimum side of an image without its border, in pixels.
        border: A fixed border in pixels that replaces the requested one.
    """

    function: Metric
    models: tuple[str, ...] = ()
    least: int = 1
    border: int | None = None

    @property
    def files(self) -> list[str]:
        """Names of the files of its models."""
        return [MODEL_FILES[model].name for model in self.models]

    def border_of(self, border: int) -> int:
        """The border in pixels that is cropped if `border` is requested."""
        return border if self.border is None else self.border


METRICS: dict[str, MetricInfo] = {
    "psnr": MetricInfo(psnr),
    "ssim": MetricInfo(ssim, least=11),
    "niqe": MetricInfo(niqe, ("niqe",), least=96),
    "pi": MetricInfo(pi, ("niqe", "nrqm"), least=96, border=PI_BORDER),
}


def judged(names: Iterable[str], output: np.ndarray, original: np.ndarray | None, border: int) -> dict[str, float]:
    """Compute metrics of one image.

    Args:
        names: Keys of METRICS.
        output: uint8 RGB [height, width, 3].
        original: uint8 RGB of equal shape; None if no metric needs it.
        border: Pixels cropped from every side.
    """
    reference = output if original is None else original
    names = list(names)
    assert original is not None or not any(OBJECTIVES[name].original for name in names)
    return {name: METRICS[name].function(output, reference, METRICS[name].border_of(border)) for name in names}


def averaged(images: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of every metric over images, with each PSNR capped at PSNR_CEILING."""
    return {name: float(np.mean([_capped(name, values[name]) for values in images])) for name in images[0]}


def _capped(name: str, value: float) -> float:
    return min(value, PSNR_CEILING) if name == "psnr" else value


def doubt(outputs: Iterable[np.ndarray], pairs: Iterable[Pair], scale: int) -> str | None:
    """A warning if a float network is worse than bicubic interpolation, which usually means wrong preprocessing.

    Args:
        outputs: The network's outputs for the pairs, uint8 RGB.
        pairs: The evaluation pairs.
        scale: The network's scale.

    Returns:
        One line; None if the network is better, if there are no originals, or for scale 1.
    """
    judged_pairs = [(output, pair.low, pair.high) for output, pair in zip(outputs, pairs, strict=True) if pair.high is not None]
    if scale == 1 or not judged_pairs:
        return None
    network, bicubic = (
        float(np.mean([min(psnr(image, high, scale), PSNR_CEILING) for image, high in images]))
        for images in (
            [(output, high) for output, _, high in judged_pairs],
            [(resize(low, *high.shape[:2]), high) for _, low, high in judged_pairs],
        )
    )
    if network >= bicubic:
        return None
    return (
        f"the float network reaches {network:.2f} dB, bicubic interpolation {bicubic:.2f} dB: check the network's value range"
        " (0 to 1, not 0 to 255) and channel order (RGB, not BGR); lower PSNR is normal for networks trained for perceptual"
        " quality or degraded images"
    )


def why_unavailable(name: str) -> str | None:
    """Why a metric is unavailable (missing files, their folder, how to download them), or None if it is available."""
    missing = [MODEL_FILES[model].name for model in METRICS[name].models if not MODEL_FILES[model].path.is_file()]
    if not missing:
        return None
    return f"{name} needs {' and '.join(missing)} in {metrics_folder()}; to download, type autoq fetch-metrics {name}"


def available_metrics() -> list[str]:
    """Names of the metrics whose model files are installed."""
    return [name for name in METRICS if why_unavailable(name) is None]


def require(name: str) -> None:
    """Raise MetricUnavailable if a model file of the metric is missing."""
    reason = why_unavailable(name)
    if reason:
        raise MetricUnavailable(reason)


_pristine = functools.cache(natural.Pristine.read)
_regression = functools.cache(learned.Regression.read)


def _model_file(model: str) -> Path:
    require("pi" if model == "nrqm" else model)
    return MODEL_FILES[model].path


def import_pyiqa() -> types.ModuleType:
    """Import pyiqa, which needs torchvision."""
    allow_torchvision()
    return importlib.import_module("pyiqa")
