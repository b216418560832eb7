"""A point of a study as files that run: trained again, written, reloaded, and held against what the study promised.

A trial is deterministic, so its weights are not kept: training the policy again gives them.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2

from autoq.config.policy import ROLES, Policy, Role, TensorQuant
from autoq.config.spec import Record
from autoq.costs.latency.table import read_table
from autoq.deploy import verify
from autoq.deploy.verify import Line
from autoq.errors import AutoqError, InputError, unknown
from autoq.export.formats import PLAIN
from autoq.export.ir import write_ir
from autoq.export.onnx import Graph, export_graph, for_runtime, load_graph, payload_bytes, weight_widths
from autoq.export.packed import Packed, pack, unpack
from autoq.export.packed import payload_bytes as packed_payload_bytes
from autoq.export.qonnx import packed_size, write_qonnx
from autoq.graph.quantize import Quantized
from autoq.study.results import point_name
from autoq.study.study import Study
from autoq.system.files import whole, write_whole
from autoq.system.processor import available_cores, exact_weight_bits
from autoq.targets import TargetInfo, load_target, target_info
from autoq.targets.bits import check_executor
from autoq.trial.context import TrialContext, prepare
from autoq.trial.run import trained

FILES = {"onnx": "model.onnx", "openvino": "model.xml", "packed": "model.safetensors", "qonnx": "model.onnx"}
"""Format -> the file that is asked for. With `onnx`, what the target's runtime loads; with `packed`, what is stored."""

QONNX = "qonnx"
"""Format of an export, and of what a target loads."""


@dataclass(frozen=True)
class Delivered:
    """Where a point was written, and what was promised and found. bytes: of all model files."""

    file: Path
    bytes: int
    lines: tuple[Line, ...]

    def document(self) -> dict[str, Any]:
        """Plain data: file, bytes, payload, and by name what was promised and found."""
        found = {line.name: line.found for line in self.lines}
        return {
            "file": str(self.file),
            "bytes": self.bytes,
            "payload_bytes": found["size" if self.file.name == FILES["packed"] else "size_runtime"],
            "promised": {line.name: line.promised for line in self.lines if line.promised is not None},
            "found": found,
            "agreement_db": found["agreement"],
            "faster_than_float": verify.faster(self.lines),
            "warnings": self.warnings,
            "lines": [asdict(line) for line in self.lines],
        }

    @property
    def warnings(self) -> list[str]:
        """What differs from the promise and is no error, in words."""
        return list(verify.broken(self.lines).values())

    def in_words(self) -> list[Mapping[str, str]]:
        """The lines as text: name, promised, found, tolerance, holds."""
        return [_in_words(line) for line in self.lines]


def check_format(name: str, target: str) -> None:
    """Raise InputError for a format that does not exist, or that a target does not read."""
    if name not in FILES:
        raise InputError(f"--format '{name}': {unknown('format', name, FILES)}; type --format onnx")
    if target_info(target).file == QONNX:
        if name != QONNX:
            raise InputError(f"--format '{name}': holds integers of 8 bits or fewer, {target} has wider ones; type --format qonnx")
        check_executor()
    elif name == QONNX:
        raise InputError(f"--format '{name}': {target} reads ONNX with Q/DQ; type --format onnx, or export a study of target bits")
    if name == "openvino" and not target.startswith("openvino"):
        raise InputError(f"--format 'openvino': {target} reads ONNX; type --format onnx")


def check_folder(folder: Path) -> None:
    """Raise InputError for a folder that holds anything, or that cannot be made."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"--output '{folder}': it holds other files; give a new folder")
    if not folder.absolute().parent.is_dir():
        raise InputError(f"--output '{folder}': there is no folder '{folder.absolute().parent}'; make it first")


def deliver(
    study: Study, record: Record, format: str, folder: Path, phase: Callable[[str], None], strict: bool = False
) -> Delivered:
    """Write a point to a new folder: model, policy.json, README.md (model card) and, where a runtime loads it, run.py.

    Raises AutoqError, and leaves no folder, where bytes, qualities or a modelled latency are not what the study promised. A
    measured latency that differs is in the lines, and raises with `strict` alone: the machine may be busy.
    """
    check_format(format, study.spec.trial.target)
    check_folder(folder)
    partial = folder.absolute().with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        delivered = write(retrain(study, record, phase), format, partial, phase)
        wrong, target = verify.broken(delivered.lines), target_info(study.spec.trial.target)
        busy = wrong.keys() == {"latency"} and target.model is None
        if wrong and (strict or not busy):
            found, advice = "; ".join(wrong.values()), ""
            if busy:
                advice = "; run the command again when nothing else runs on this machine, or without --strict"
            elif target.overflows and study.spec.trial.exact_weight_bits > exact_weight_bits():
                advice = "; 8-bit weights overflow on this processor, which has no VNNI: search again here"
            raise AutoqError(f"{point_name(record)} of study '{study.name}' does not export as promised: {found}{advice}")
        if folder.is_dir():
            folder.rmdir()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Delivered(folder / delivered.file.name, delivered.bytes, delivered.lines)


def unpack_to(file: Path, folder: Path) -> Path:
    """The runtime's file of a package and its policy, in a new folder. Raises InputError where it is none."""
    check_folder(folder)
    found = unpack(file)
    folder.mkdir(exist_ok=True)
    path = folder / FILES["onnx"]
    with whole(path) as partial:
        partial.write_bytes(_of_package(found))
    write_whole(folder / "policy.json", json.dumps({"policy": found.policy.to_dict()}, indent=1) + "\n")
    return path


def _of_package(package: Packed) -> bytes:
    """The runtime's file."""
    return bytes(for_runtime(package.model, package.widths).SerializeToString())


@dataclass(frozen=True)
class Retrained:
    """A point trained again. model: what the target's runtime loads; package: the packed form, None where the target has none."""

    study: Study
    record: Record
    policy: Policy
    context: TrialContext
    graph: Graph
    quantized: Quantized
    model: Graph
    package: bytes | None

    @functools.cached_property
    def file(self) -> bytes:
        """The runtime's file."""
        return bytes(self.model.SerializeToString())

    @functools.cached_property
    def payload(self) -> list[Line]:
        """Bytes of tensors, promised and found."""
        promised, package = self.record.values, self.package
        packed = packed_size(self.model) if package is None else packed_payload_bytes(package)
        lines = [
            verify.exact("size", promised["size"], packed),
            verify.exact("size_runtime", promised["size_runtime"], payload_bytes(self.model)),
        ]
        return lines if package is None else [*lines, verify.overhead(len(package) - packed, len(self.context.traced.layers))]

    @functools.cached_property
    def latency(self) -> list[Line]:
        """Milliseconds, promised and found: measured once for all formats, which hold one runtime file."""
        table, promised = read_table(self.study.latency_path), self.record.values["latency"]
        return verify.latency(self.context, self.graph, self.study.spec, table, self.file, self.policy, promised)


def retrain(study: Study, record: Record, phase: Callable[[str], None], context: TrialContext | None = None) -> Retrained:
    """Train a point as its trial did, which gives the same weights; `context`: that of the study, where it is prepared."""
    spec, policy = study.spec, Policy.from_dict(record.policy)
    if context is None:
        phase("preparing the float network")
        context = prepare(spec.trial, available_cores())
    graph = load_graph(study.graph_path) if study.graph_path.is_file() else export_graph(context.traced)
    phase(f"training {point_name(record)} again: {record.steps} steps")
    quantized = trained(context, policy, record.steps)
    file = target_info(spec.trial.target).file
    if file == QONNX:
        return Retrained(study, record, policy, context, graph, quantized, write_qonnx(graph, quantized), None)
    widths, plain = weight_widths(quantized), PLAIN[file](graph, quantized)
    package = pack(plain, widths, policy)
    return Retrained(study, record, policy, context, graph, quantized, for_runtime(plain, widths), package)


def write(point: Retrained, format: str, folder: Path, phase: Callable[[str], None]) -> Delivered:
    """Write a point to an empty folder, and find out what its file does. Nothing is judged yet."""
    phase("writing and checking the file")
    spec, promised = point.study.spec, point.record.values
    path = folder / FILES[format]
    if format == "openvino":
        write_ir(point.file, path)
    elif format == "packed" and point.package is not None:
        path.write_bytes(point.package)
    else:
        path.write_bytes(point.file)
    reloaded = _of_package(unpack(path)) if format == "packed" else path
    run = load_target(spec.trial.target).load(reloaded, spec.latency_threads)
    lines = [
        *verify.qualities(point.context, run, point.quantized, promised),
        *point.payload,
    ]
    if target_info(spec.trial.target).latency:
        phase("measuring its latency")
        lines += point.latency
    written = sum(each.stat().st_size for each in folder.iterdir())
    _describe(point.study, point.record, point.policy, format, folder, lines, point.context.traced.multiple)
    return Delivered(path, written, tuple(lines))


def _describe(
    study: Study, record: Record, policy: Policy, format: str, folder: Path, lines: Sequence[Line], multiple: int
) -> None:
    """The files beside the model."""
    spec = study.spec
    document = {
        "autoq": metadata.version("autoq"),
        "study": study.name,
        "point": point_name(record),
        "model": spec.trial.model,
        "scale": spec.trial.scale,
        "target": spec.trial.target,
        "steps": record.steps,
        "inputs": spec.inputs,
        "policy": record.policy,
        "lines": [asdict(line) for line in lines],
    }
    (folder / "policy.json").write_text(json.dumps(document, indent=1) + "\n")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("autoq.export", "."), undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    facts = {
        "file": FILES[format],
        "format": format,
        "output": policy.output,
        "study": study,
        "spec": spec,
        "record": record,
        "point": point_name(record),
        "stages": _formats(policy, target_info(spec.trial.target)),
        "lines": [_in_words(line) for line in lines],
        "rounds": verify.ROUNDS,
        "faster": verify.faster(lines),
        "warnings": list(verify.broken(lines).values()),
        "target": target_info(spec.trial.target),
        "multiple": multiple,
        "sides": "any height and width" if multiple == 1 else f"height and width multiples of {multiple}",
        "versions": study.environment.get("versions", {}),
        "machine": study.environment.get("machine", ""),
    }
    (folder / "README.md").write_text(environment.get_template("card.md.j2").render(facts))
    if format not in ("packed", QONNX):
        (folder / "run.py").write_text(environment.get_template("run.py.j2").render(facts))


def _formats(policy: Policy, target: TargetInfo) -> list[tuple[str, dict[str, str]]]:
    """stage, and its formats by role in words."""
    in_float = "bfloat16" if target.bfloat16 else "float32"

    def words(role: Role, quant: TensorQuant) -> str:
        if quant.is_float and policy.output == "uint8":
            return ""  # the stage has no such tensor: nothing is float there
        if quant.bits > target.integer_bits:
            return f"float16, run as {in_float}" if role == "weight" and not quant.is_float else in_float
        return f"{quant.bits} bits per {quant.granularity}, {quant.quantizer} from {quant.clipping}"

    return [(stage, {role: words(role, quant.role(role)) for role in ROLES}) for stage, quant in policy.stages]


def _in_words(line: Line) -> Mapping[str, str]:
    interval = ""
    if line.low is not None and line.high is not None:
        interval = f" ({verify.in_unit(line.name, line.low)} to {verify.in_unit(line.name, line.high)})"
    return {
        "name": line.name.replace("_", " "),
        "promised": "" if line.promised is None else verify.in_unit(line.name, line.promised),
        "found": verify.in_unit(line.name, line.found) + interval,
        "tolerance": line.tolerance,
        "holds": {True: "yes", False: "no", None: ""}[line.holds],
    }
