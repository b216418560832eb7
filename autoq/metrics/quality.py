"""How good the upscaled images are. Metrics but PI look at images without a border, in a trial of `scale` pixels."""

from __future__ import annotations

import functools
import importlib
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from skimage.color import rgb2ycbcr
from skimage.metrics import structural_similarity

from autoq.config.objectives import OBJECTIVES
from autoq.errors import MetricUnavailable
from autoq.images.data import Pair, resize
from autoq.system.compat import allow_torchvision

Metric = Callable[[np.ndarray, np.ndarray, int], float]

PSNR_CEILING = 100.0
"""The most an image counts: two equal ones would make an infinite dB of any average, and of JSON no number."""

PI_BORDER = 4
"""Pixels that the PIRM 2018 challenge left out, at x4."""

Space = Literal["yiq", "ycbcr"]
"""What luma is of. NIQE's official values, which pyiqa gives by default, are on YIQ; those of PIRM on YCbCr."""


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
    return no_reference("niqe", found, border, "yiq")


def pi(found: np.ndarray, expected: np.ndarray, border: int) -> float:
    """Perceptual index of the PIRM 2018 challenge: ((10 - NRQM) + NIQE) / 2, by pyiqa with the published models.

    Both parts on Y of YCbCr.
    """
    nrqm, niqe = (no_reference(name, found, border, "ycbcr") for name in ("nrqm", "niqe"))
    return (10 - nrqm + niqe) / 2


@dataclass(frozen=True)
class MetricInfo:
    """The function, the published model files it needs, and pyiqa's names of the models in them.

    least: side, in pixels, that an image must have without its border. border: of its own, whatever the others' is.
    """

    function: Metric
    files: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    least: int = 1
    border: int | None = None

    def border_of(self, border: int) -> int:
        """Pixels on every side that are not looked at, where `border` is asked for."""
        return border if self.border is None else self.border


METRICS: dict[str, MetricInfo] = {
    "psnr": MetricInfo(psnr),
    "ssim": MetricInfo(ssim, least=11),
    "niqe": MetricInfo(niqe, ("niqe_modelparameters.mat",), ("niqe",), least=96),
    "pi": MetricInfo(pi, ("niqe_modelparameters.mat", "NRQM_model.mat"), ("niqe", "nrqm"), least=96, border=PI_BORDER),
}


def judged(names: Iterable[str], found: np.ndarray, expected: np.ndarray | None, border: int) -> dict[str, float]:
    """Metrics of one image, uint8 RGB as it should be beside it; `border` pixels are not looked at.

    expected: None where there is no original, and none of the metrics asks for it.
    """
    beside = found if expected is None else expected
    names = list(names)
    assert expected is not None or not any(OBJECTIVES[name].original for name in names)
    return {name: METRICS[name].function(found, beside, METRICS[name].border_of(border)) for name in names}


def averaged(images: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of every metric over images, of which each counts with a PSNR of no more than PSNR_CEILING."""
    return {name: float(np.mean([_capped(name, values[name]) for values in images])) for name in images[0]}


def _capped(name: str, value: float) -> float:
    return min(value, PSNR_CEILING) if name == "psnr" else value


def doubt(outputs: Iterable[np.ndarray], pairs: Iterable[Pair], scale: int) -> str | None:
    """One line where a float network is worse than bicubic interpolation, which is seldom meant; None where it is not, or
    where that cannot be said: without originals, and where nothing is enlarged.

    outputs: its, uint8, of the pairs.
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
        f"the float network reaches {network:.2f} dB, bicubic interpolation {bicubic:.2f}: check its value range (it is given"
        " and gives 0 to 1, not 0 to 255) and its channel order (RGB, not BGR), unless it is trained for looks or degraded images"
    )


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
def _pyiqa_metric(name: str, space: Space) -> Callable[..., torch.Tensor]:
    require("pi" if name == "nrqm" else name)  # pyiqa would try to download
    metric: Callable[..., torch.Tensor] = import_pyiqa().create_metric(
        name, device="cpu", test_y_channel=True, color_space=space, crop_border=0
    )
    return metric


def load_models(names: Iterable[str]) -> None:
    """Load the published models that metrics need, so that the first image does not pay for it."""
    for name in names:
        for model in METRICS[name].models:
            _pyiqa_metric(model, "ycbcr" if name == "pi" else "yiq")


def import_pyiqa() -> types.ModuleType:
    """pyiqa, which imports torchvision."""
    allow_torchvision()
    return importlib.import_module("pyiqa")


def no_reference(name: str, found: np.ndarray, border: int, space: Space) -> float:
    """pyiqa's niqe or nrqm of uint8 RGB without its border, on luma."""
    inner = np.ascontiguousarray(without_border(found, border).transpose(2, 0, 1))
    with torch.no_grad():
        return float(_pyiqa_metric(name, space)(torch.from_numpy(inner)[None].float() / 255))
