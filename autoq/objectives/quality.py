"""How good the upscaled images are. Full-reference metrics on Y without a border of `scale` pixels."""

from __future__ import annotations

import functools
import importlib
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from skimage.color import rgb2ycbcr
from skimage.metrics import structural_similarity

from autoq.compat import allow_torchvision
from autoq.errors import MetricUnavailable

Metric = Callable[[np.ndarray, np.ndarray, int], float]


def luma(pixels: np.ndarray, border: int) -> np.ndarray:
    """uint8 RGB [height, width, 3] -> Y of ITU-R BT.601 in [16, 235], float64, border cut off."""
    y: np.ndarray = rgb2ycbcr(pixels)[..., 0]
    return y[border:-border, border:-border]


def psnr(found: np.ndarray, expected: np.ndarray, scale: int) -> float:
    """dB on Y, peak 255; uint8 RGB of equal shape."""
    error = np.mean((luma(found, scale) - luma(expected, scale)) ** 2)
    return float(10 * np.log10(255.0**2 / error)) if error else float("inf")


def ssim(found: np.ndarray, expected: np.ndarray, scale: int) -> float:
    """Wang et al. 2004 on Y: Gaussian window of sigma 1.5, 11x11, data range 255."""
    return float(
        structural_similarity(
            luma(found, scale), luma(expected, scale), gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
        )
    )


def niqe(found: np.ndarray, expected: np.ndarray, scale: int) -> float:
    """Mittal et al. 2013, by pyiqa with its published model; `expected` is not looked at."""
    return _no_reference("niqe", found, scale)


def pi(found: np.ndarray, expected: np.ndarray, scale: int) -> float:
    """Perceptual index of the PIRM 2018 challenge: ((10 - NRQM) + NIQE) / 2, by pyiqa with the published models."""
    return (10 - _no_reference("nrqm", found, scale) + _no_reference("niqe", found, scale)) / 2


@dataclass(frozen=True)
class MetricInfo:
    """The function, the published model files it needs, and pyiqa's names of the models in them."""

    function: Metric
    files: tuple[str, ...] = ()
    models: tuple[str, ...] = ()


METRICS: dict[str, MetricInfo] = {
    "psnr": MetricInfo(psnr),
    "ssim": MetricInfo(ssim),
    "niqe": MetricInfo(niqe, ("niqe_modelparameters.mat",), ("niqe",)),
    "pi": MetricInfo(pi, ("niqe_modelparameters.mat", "NRQM_model.mat"), ("niqe", "nrqm")),
}


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


def _no_reference(name: str, found: np.ndarray, scale: int) -> float:
    inner = np.ascontiguousarray(found[scale:-scale, scale:-scale].transpose(2, 0, 1))
    with torch.no_grad():
        return float(_pyiqa_metric(name)(torch.from_numpy(inner)[None].float() / 255))
