"""Evaluate an exported file or a float checkpoint on a folder of images, with the protocol of a trial."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autoq.config.datasets import image_folder
from autoq.deploy.tiling import checked_pixels
from autoq.deploy.upscale import Network, Progress
from autoq.errors import AutoqError, DataError, InputError, unknown
from autoq.images import crops
from autoq.images.data import Pair, eval_images, make_pair, unread
from autoq.images.pixels import to_input
from autoq.metrics.quality import METRICS, PSNR_CEILING, averaged, doubt, judged
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
    data_root: str | Path | None = None,
    metrics: str | Iterable[str] = DEFAULT_METRICS,
    scale: int | None = None,
    target: str | None = None,
    border: int | None = None,
    threads: int | None = None,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Downscale images with bicubic interpolation, upscale them with a network, and compare with the originals.

    Args:
        file: An exported .onnx file. Give either this or `model`.
        model: A float network, as in `search`.
        weights: Checkpoint of `model`.
        data: Image folder, or the name of an image set below `data_root`. Default: the crops that trials are evaluated on.
        data_root: Folder of image sets. Default: that in AUTOQ_DATA.
        metrics: Any of psnr, ssim, niqe and pi.
        scale: Upscaling factor; must match the file's.
        target: Runtime for `file`. Default: openvino-cpu.
        border: Pixels cropped from every side before comparing. Default: the scale.
        threads: Threads of the runtime. Default: all cores.
        progress: Called with the number of images done and the total.

    Returns:
        A dict with `file`, `data`, `images` (their number), `metrics` (name -> mean), `each` (one dict per image, with its
        name under `image`) and `notes` (skipped files; a float network worse than bicubic interpolation).

    Raises:
        InputError: An argument is invalid, or the model file of a metric is missing.
        AutoqError: The network's output or a metric is not finite.
    """
    names = _metrics(metrics)
    folder = image_folder(data, data_root) if data else None
    name, run, factor = _network(file, model, weights, scale, target, threads)
    images = eval_images(folder) if folder else []
    pairs = [make_pair(image, factor) for image in images] if folder else crops.bundled(factor)
    border = factor if border is None else border
    for pair in pairs:
        _check_large(pair, names, border)
    values, outputs = [], []
    progress(0, len(pairs))
    for done, pair in enumerate(pairs, 1):
        outputs.append(checked_pixels(run(to_input(pair.low))[0]))
        values.append(_judged(pair, outputs[-1], names, border))
        progress(done, len(pairs))
    notes = (unread(folder) if folder else "", doubt(outputs, pairs, factor) if model else None)
    return {
        "file": name,
        "data": str(data) if data else None,
        "images": len(pairs),
        "metrics": averaged(values),
        "each": [
            {
                "image": pair.name,
                **{metric: min(value, PSNR_CEILING) if metric == "psnr" else value for metric, value in image_values.items()},
            }
            for pair, image_values in zip(pairs, values, strict=True)
        ],
        "notes": [note for note in notes if note],
    }


def _metrics(given: str | Iterable[str]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in (given.split(",") if isinstance(given, str) else given)))
    if not names:
        raise InputError("--metrics is empty, expected names of metrics, for example --metrics psnr,ssim")
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
    """(name, runner, scale) of a file on a target, or of a float network in torch."""
    if (file is None) == (model is None):
        raise InputError(
            "expected either an .onnx file or --model NAME; type `autoq evaluate FILE` or `autoq evaluate --model NAME`"
        )
    if model is not None:
        if target is not None:
            raise InputError(f"--target {target}: a float network runs in torch; leave out --target, or give an .onnx file")
        return _float_network(model_name(model), weights, scale, threads)
    assert file is not None
    if weights is not None:
        raise InputError(f"--weights '{weights}': '{file}' includes its weights; leave out --weights")
    if is_file(str(file)):
        raise InputError(f"'{file}' is a checkpoint, expected an .onnx file; type --model NAME --weights {file}")
    target_info(target or DEFAULT_TARGET)
    network = Network(Path(file), target or DEFAULT_TARGET, threads)
    if scale not in (None, network.scale):
        raise InputError(f"--scale {scale}: '{file}' is a x{network.scale} network; type --scale {network.scale}")
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
    """Raise DataError for an image that is too small for a metric."""
    assert pair.high is not None
    height, width = pair.high.shape[:2]
    for name in names:
        border_of = METRICS[name].border_of(border)
        least = METRICS[name].least + 2 * border_of
        if min(height, width) < least:
            raise DataError(
                f"image '{pair.name}': {width}x{height} pixels, expected at least {least}x{least} for {name} with a border of"
                f" {border_of}; remove the image, or leave {name} out of --metrics"
            )


def _judged(pair: Pair, output: np.ndarray, names: Sequence[str], border: int) -> dict[str, float]:
    values = judged(names, output, pair.high, border)
    broken = [name for name, value in values.items() if np.isnan(value)]
    if broken:
        raise AutoqError(f"image '{pair.name}': {', '.join(broken)} is not a number; leave {', '.join(broken)} out of --metrics")
    return values
