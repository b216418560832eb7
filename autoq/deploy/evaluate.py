"""How good a network is on a folder of images, judged as a trial judges: an exported file, or a float checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autoq.config.options import absolute
from autoq.deploy.tiling import checked_pixels
from autoq.deploy.upscale import Network, Progress
from autoq.errors import AutoqError, DataError, InputError, unknown
from autoq.images import crops
from autoq.images.data import Pair, eval_images, make_pair, unread
from autoq.images.pixels import to_input
from autoq.metrics.quality import METRICS, PSNR_CEILING, averaged, doubt, judged, load_models
from autoq.networks import is_file
from autoq.system.processor import available_cores
from autoq.targets import Runner, target_info
from autoq.tuning.options import check_measurable, default_scale, model_name, weights_path

if TYPE_CHECKING:
    from autoq.networks import Own

DEFAULT_METRICS = ("psnr", "ssim")
DEFAULT_TARGET = "openvino-cpu"


def evaluate(
    file: str | Path | None = None,
    *,
    model: str | Own | None = None,
    weights: str | Path | None = None,
    data: str | Path | None = None,
    metrics: str | Iterable[str] = DEFAULT_METRICS,
    scale: int | None = None,
    target: str | None = None,
    border: int | None = None,
    threads: int | None = None,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Reduce images by bicubic, upscale them again, each as a whole, and compare: the protocol of a trial's evaluation.

    file: an .onnx file of a search, run on `target` (openvino-cpu); or, instead, model and weights of a float network as
    `search` takes them. data: image folder; the crops that trials are judged on if None. metrics: psnr, ssim,
    niqe, pi. scale: checked against the file's. border: pixels that are not looked at (scale). threads: all cores if None.
    progress: called with the images done and their number.

    Returns file, data, images (their number), metrics (name -> mean), each: a dict an image, `image` its name, and notes:
    lines about files that were not read, and a float network that is worse than bicubic interpolation.
    Raises InputError, also for a metric whose model file is not here, and AutoqError for an output that is no number.
    """
    names = _metrics(metrics)
    folder = absolute(data)
    images = eval_images(folder) if folder else []
    subject, run, factor = _network(file, model, weights, scale, target, threads)
    pairs = [make_pair(image, factor) for image in images] if folder else crops.bundled(factor)
    border = factor if border is None else border
    for pair in pairs:
        _check_large(pair, names, border)
    load_models(names)
    values, outputs = [], []
    progress(0, len(pairs))
    for done, pair in enumerate(pairs, 1):
        outputs.append(checked_pixels(run(to_input(pair.low))[0]))
        values.append(_judged(pair, outputs[-1], names, border))
        progress(done, len(pairs))
    notes = (unread(folder) if folder else "", doubt(outputs, pairs, factor) if model else None)
    return {
        "file": subject,
        "data": str(data) if data else None,
        "images": len(pairs),
        "metrics": averaged(values),
        "each": [
            {"image": pair.name, **{name: min(value, PSNR_CEILING) if name == "psnr" else value for name, value in found.items()}}
            for pair, found in zip(pairs, values, strict=True)
        ],
        "notes": [note for note in notes if note],
    }


def _metrics(given: str | Iterable[str]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in (given.split(",") if isinstance(given, str) else given)))
    if not names:
        raise InputError("no metric given; type --metrics psnr,ssim")
    for name in names:
        if name not in METRICS:
            raise InputError(unknown("metric", name, METRICS))
    check_measurable(names)
    return names


def _network(
    file: str | Path | None,
    model: str | Own | None,
    weights: str | Path | None,
    scale: int | None,
    target: str | None,
    threads: int | None,
) -> tuple[str, Runner, int]:
    """(what it is called, the network, its scale) of a file on a target, or of a float network in torch."""
    if (file is None) == (model is None):
        raise InputError("expected an .onnx file, or --model NAME for a float network; type autoq evaluate FILE, or --model srgan")
    if model is not None:
        if target is not None:
            raise InputError(f"--target {target}: a float checkpoint runs in torch; leave it out, or give an .onnx file")
        return _float_network(model_name(model), weights, scale, threads)
    assert file is not None
    if weights is not None:
        raise InputError(f"--weights '{weights}': '{file}' holds its own; leave one of them out")
    if is_file(str(file)):
        raise InputError(f"'{file}': a checkpoint, expected an .onnx file; type --model NAME --weights {file}")
    target_info(target or DEFAULT_TARGET)
    network = Network(Path(file), target or DEFAULT_TARGET, threads)
    if scale not in (None, network.scale):
        raise InputError(f"'{file}': a x{network.scale} network, asked for x{scale}; type --scale {network.scale}")
    return str(file), network, network.scale


def _float_network(name: str, weights: str | Path | None, scale: int | None, threads: int | None) -> tuple[str, Runner, int]:
    import torch

    from autoq.networks import build_model, weights_file
    from autoq.system.compat import guest_code
    from autoq.system.device import channels_last

    path, factor = weights_path(name, scale, weights), scale or default_scale(name)
    torch.set_num_threads(threads or available_cores())
    network = channels_last(build_model(name, factor, path))

    def run(image: np.ndarray) -> np.ndarray:
        with torch.no_grad(), guest_code():
            output: np.ndarray = network(torch.from_numpy(image).contiguous(memory_format=torch.channels_last)).numpy()
        return output

    return str(weights or weights_file(name, factor, path) or name), run, factor


def _check_large(pair: Pair, names: Sequence[str], border: int) -> None:
    """Raise DataError for an image that leaves a metric too little to look at."""
    assert pair.high is not None
    height, width = pair.high.shape[:2]
    for name in names:
        border_of = METRICS[name].border_of(border)
        least = METRICS[name].least + 2 * border_of
        if min(height, width) < least:
            raise DataError(
                f"image '{pair.name}': {width}x{height} is too small for {name} without a border of {border_of};"
                f" give images of {least}x{least} or more"
            )


def _judged(pair: Pair, found: np.ndarray, names: Sequence[str], border: int) -> dict[str, float]:
    values = judged(names, found, pair.high, border)
    broken = [name for name, value in values.items() if np.isnan(value)]
    if broken:
        raise AutoqError(f"image '{pair.name}': {', '.join(broken)} is not a number; leave it out of --metrics")
    return values
