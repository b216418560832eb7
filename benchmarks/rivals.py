"""What others make of the float network that autoq starts from: the rivals of deploy.py, by their public settings.

float32, bfloat16    the network itself; bfloat16 with weights stored as OpenVINO stores them by default, in 16 bits
NNCF PTQ             nncf.quantize, both presets, fast and accurate bias correction
NNCF accuracy control    nncf.quantize_with_accuracy_control: layers go back to float until MAX_DROP dB are kept
ORT static           onnxruntime.quantization.quantize_static: QDQ, weights per channel, three ways to find ranges; run in
                     OpenVINO and in ONNX Runtime
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import onnx
import openvino
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from autoq.export.onnx import INPUT, payload_bytes
from autoq.images.pixels import to_pixels
from autoq.metrics.quality import psnr
from autoq.system.compat import guest_code
from autoq.targets import Runner, load_target
from autoq.targets.openvino_cpu import core

OPENVINO, BFLOAT16, ORT = "openvino-cpu", "openvino-cpu-bf16", "onnxruntime-cpu"

MAX_DROP = 0.05
"""dB that accuracy control may lose on its validation images."""

FAILURES = (RuntimeError, ValueError, TypeError, nncf.ValidationError, nncf.InternalError, nncf.UnsupportedModelError)
"""What the rivals' tools raise for a network that they cannot quantize: a result, too."""

nncf.set_log_level(logging.ERROR)
for handler in logging.getLogger("nncf").handlers:
    if isinstance(handler, logging.StreamHandler):
        handler.setStream(sys.stderr)  # standard output is for results


@dataclass(frozen=True)
class File:
    """A network as a runtime loads it. data: an ONNX file, or the path of an .xml; payload: bytes of its tensors;
    bytes: of all that is stored. runtime: a target of autoq's.
    """

    data: bytes | Path
    payload: int
    bytes: int
    runtime: str = OPENVINO

    def load(self, threads: int) -> Runner:
        """In its runtime."""
        return load_target(self.runtime).load(self.data, threads)


@dataclass(frozen=True)
class Given:
    """What a rival starts from. network: the float network, ONNX. calibration: the patches [1, 3, side, side] that autoq
    finds its ranges with. validation: inputs [1, 3, height, width] and the images they should become, uint8. reduced:
    whether the processor multiplies bytes in ways that overflow, where ORT's manual says to use 7 bits.
    """

    network: bytes
    calibration: Sequence[np.ndarray]
    validation: Sequence[tuple[np.ndarray, np.ndarray]]
    scale: int
    reduced: bool


@dataclass(frozen=True)
class Rival:
    """build: writes its files to a folder. runtimes: what the file is run in; OpenVINO in the precision of the study's target."""

    build: Callable[[Given, Path], File]
    runtimes: tuple[str, ...] = (OPENVINO,)


def named(rival: str, runtime: str) -> str:
    """A rival's name where it is run in a runtime."""
    return f"{rival}, in ONNX Runtime" if runtime == ORT else rival


def run_in(rival: str, usual: str, target: str) -> str:
    """What a rival's file is run in: in OpenVINO the study's own target; float32 in float32."""
    return target if usual == OPENVINO and rival != FLOAT else usual


def onnx_file(data: bytes, runtime: str = OPENVINO) -> File:
    """An ONNX file as OpenVINO loads it."""
    return File(data, payload_bytes(onnx.load_from_string(data)), len(data), runtime)


def _ir_file(model: openvino.Model, folder: Path) -> File:
    """As OpenVINO saves it by default: what is still float32 as float16."""
    path = folder / "model.xml"
    openvino.save_model(model, path)
    payload = path.with_suffix(".bin").stat().st_size
    return File(path, payload, payload + path.stat().st_size)


def _float32(given: Given, folder: Path) -> File:
    return onnx_file(given.network)


def _halved(given: Given, folder: Path) -> File:
    return _ir_file(_read(given), folder)


@guest_code()
def _ptq(preset: nncf.QuantizationPreset, fast: bool, given: Given, folder: Path) -> File:
    patches = nncf.Dataset(given.calibration)
    model = nncf.quantize(_read(given), patches, preset=preset, fast_bias_correction=fast, subset_size=len(given.calibration))
    return _ir_file(model, folder)


@guest_code()
def _accuracy_control(preset: nncf.QuantizationPreset, given: Given, folder: Path) -> File:
    def quality(compiled: Any, items: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[float, list[float]]:
        each = [psnr(to_pixels(compiled(low)[0][0]), high, given.scale) for low, high in items]
        return float(np.mean(each)), each

    patches, validation = nncf.Dataset(given.calibration), nncf.Dataset(given.validation)
    model = nncf.quantize_with_accuracy_control(
        _read(given), patches, validation, quality, max_drop=MAX_DROP, preset=preset, subset_size=len(given.calibration)
    )
    return _ir_file(model, folder)


def _static(method: CalibrationMethod, given: Given, folder: Path) -> File:
    network, prepared, path = (folder / name for name in ("float.onnx", "prepared.onnx", "model.onnx"))
    network.write_bytes(given.network)
    quant_pre_process(network, prepared)
    quantize_static(
        prepared,
        path,
        _Reader(given.calibration),
        per_channel=True,
        reduce_range=given.reduced,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=method,
    )
    return onnx_file(path.read_bytes())


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Patches, one after the other."""

    def __init__(self, patches: Sequence[np.ndarray]) -> None:
        self.patches: Iterator[np.ndarray] = iter(patches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        patch = next(self.patches, None)
        return None if patch is None else {INPUT: patch}


def _read(given: Given) -> openvino.Model:
    return core().read_model(given.network)


PERFORMANCE, MIXED = nncf.QuantizationPreset.PERFORMANCE, nncf.QuantizationPreset.MIXED
FLOAT, PTQ = "float32", "NNCF PTQ"

RIVALS: dict[str, Rival] = {
    FLOAT: Rival(_float32, (OPENVINO, ORT)),
    "bfloat16": Rival(_halved, (BFLOAT16,)),
    PTQ: Rival(partial(_ptq, PERFORMANCE, True)),
    f"{PTQ}, mixed": Rival(partial(_ptq, MIXED, True)),
    f"{PTQ}, accurate bias": Rival(partial(_ptq, PERFORMANCE, False)),
    f"{PTQ}, mixed, accurate bias": Rival(partial(_ptq, MIXED, False)),
    "NNCF accuracy control": Rival(partial(_accuracy_control, PERFORMANCE)),
    "NNCF accuracy control, mixed": Rival(partial(_accuracy_control, MIXED)),
    "ORT static, min-max": Rival(partial(_static, CalibrationMethod.MinMax), (OPENVINO, ORT)),
    "ORT static, entropy": Rival(partial(_static, CalibrationMethod.Entropy), (OPENVINO, ORT)),
    "ORT static, percentile": Rival(partial(_static, CalibrationMethod.Percentile), (OPENVINO, ORT)),
}
"""NNCF's first line of each is what it does where nothing is asked for."""
