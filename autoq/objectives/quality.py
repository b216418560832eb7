"""How good the upscaled images are. Full-reference metrics on Y without a border, in a trial of `scale` pixels."""

from __future__ import annotations

import functools
import importlib
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from skimage.color import rgb2ycbcr
from skimage.metrics import structural_similarity

from autoq.compat import allow_torchvision
from autoq.errors import MetricUnavailable

Metric = Callable[[np.ndarray, np.ndarray, int], float]

PSNR_CEILING = 100.0
"""Reported where two images are equal: an infinite dB is no JSON number."""


def without_border(pixels: np.ndarray, border: int) -> np.ndarray:
    """An image [height, width, ...] less `border` pixels on every side."""
    height, width = pixels.shape[:2]
    return pixels[border : height - border, border : width - border]


def luma(pixels: np.ndarray, border: int) -> np.ndarray:
    """uint8 RGB [height, width, 3] -> Y of ITU-R BT.601 in [16, 235], float64, border cut off."""
    y: np.ndarray = rgb2ycbcr(pixels)[..., 0]
    return without_border(y, border)


def psnr(found: np.ndarray, expected: np.ndarray, border: int) -> float:
    """dB on Y, peak 255; uint8 RGB of equal shape."""
    error = np.mean((luma(found, border) - luma(expected, border)) ** 2)
    return float(10 * np.log10(255.0**2 / error)) if error else float("inf")


def fidelity(found: np.ndarray, reference: np.ndarray) -> float:
    """dB on RGB, peak 255, at most PSNR_CEILING; uint8 RGB of equal shape. reference: the float network's output."""
    return decibels(float(np.mean((found.astype(np.float64) - reference) ** 2)) / 255.0**2)


def decibels(mse: float) -> float:
    """PSNR (dB) of a mean squared error in units of the peak, at most PSNR_CEILING."""
    return min(float(-10 * np.log10(mse)), PSNR_CEILING) if mse else PSNR_CEILING


def ssim(found: np.ndarray, expected: np.ndarray, border: int) -> float:
    """Wang et al. 2004 on Y: Gaussian window of sigma 1.5, 11x11, data range 255."""
    return float(
        structural_similarity(
            luma(found, border),
            luma(expected, border),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=255,
        )
    )


def niqe(found: np.ndarray, expected: np.ndarray, border: int) -> float:
    """Mittal et al. 2013, by pyiqa with its published model; `expected` is not looked at."""
    return _no_reference("niqe", found, border)


def pi(found: np.ndarray, expected: np.ndarray, border: int) -> float:
    """Perceptual index of the PIRM 2018 challenge: ((10 - NRQM) + NIQE) / 2, by pyiqa with the published models."""
    return (10 - _no_reference("nrqm", found, border) + _no_reference("niqe", found, border)) / 2


@dataclass(frozen=True)
class MetricInfo:
    """The function, the published model files it needs, and pyiqa's names of the models in them.

    least: side, in pixels, that an image must have without its border.
    """

    function: Metric
    files: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    least: int = 1


METRICS: dict[str, MetricInfo] = {
    "psnr": MetricInfo(psnr),
    "ssim": MetricInfo(ssim, least=11),
    "niqe": MetricInfo(niqe, ("niqe_modelparameters.mat",), ("niqe",), least=96),
    "pi": MetricInfo(pi, ("niqe_modelparameters.mat", "NRQM_model.mat"), ("niqe", "nrqm"), least=96),
}


def judged(names: Iterable[str], found: np.ndarray, expected: np.ndarray, border: int) -> dict[str, float]:
    """Metrics of one image, uint8 RGB as it should be beside it; `border` pixels are not looked at."""
    return {name: METRICS[name].function(found, expected, border) for name in names}


def averaged(images: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of every metric over images; of PSNR no more than PSNR_CEILING."""
    means = {name: float(np.mean([values[name] for values in images])) for name in images[0]}
    return {name: min(mean, PSNR_CEILING) if name == "psnr" else mean for name, mean in means.items()}


def metrics_folder() -> Path:
    """Where pyiqa looks for model files: `hub/pyiqa` below torch's home."""
    return Path(torch.hub.get_dir()) / "pyiqa"


def why_unavailable(name: str) -> str | None:
    """None if the metric can be computed here, else one line: what is missing, where, how to get it."""
    missing = [file for file in METRICS[name].files if not (metrics_folder() / file).is_file()]
    if not missing:
        return None
    return (
        f"{name} needs {' and '.join(missing)} in {metrics_folder()}; on a machine with internet,"
        f" python -c \"import pyiqa; pyiqa.create_metric('{'nrqm' if name == 'pi' else name}')\" fetches it"
    )


def available_metrics() -> list[str]:
    """Names of the metrics whose model files are here."""
    return [name for name in METRICS if why_unavailable(name) is None]


def require(name: str) -> None:
    """Raise MetricUnavailable if the metric cannot be computed here."""
    reason = why_unavailable(name)
    if reason:
        raise MetricUnavailable(reason)


@functools.cache
def _pyiqa_metric(name: str) -> Callable[..., torch.Tensor]:
    require("pi" if name == "nrqm" else name)  # pyiqa would try to download
    metric: Callable[..., torch.Tensor] = import_pyiqa().create_metric(name, device="cpu")
    return metric


def load_models(names: Iterable[str]) -> None:
    """Load the published models that metrics need, so that the first image does not pay for it."""
    for model in {model for name in names for model in METRICS[name].models}:
        _pyiqa_metric(model)


def import_pyiqa() -> types.ModuleType:
    """pyiqa, which imports torchvision."""
    allow_torchvision()
    return importlib.import_module("pyiqa")


def _no_reference(name: str, found: np.ndarray, border: int) -> float:
    inner = np.ascontiguousarray(without_border(found, border).transpose(2, 0, 1))
    with torch.no_grad():
        return float(_pyiqa_metric(name)(torch.from_numpy(inner)[None].float() / 255))
