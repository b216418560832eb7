"""The export pipeline: train a point of a study again, write its files, reload them, and verify them against the study.

A trial is deterministic, so studies do not store its weights. Training the policy again reproduces them. Those of finetuned
points are stored.
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
from autoq.export.onnx import Graph, for_runtime, payload_bytes, stored_graph, weight_widths
from autoq.export.packed import Packed, pack, unpack
from autoq.export.packed import payload_bytes as packed_payload_bytes
from autoq.export.qonnx import packed_size, write_qonnx
from autoq.graph.quantize import Quantized
from autoq.study.results import point_name
from autoq.study.study import Study
from autoq.system.files import atomic_write, atomic_write_text
from autoq.system.processor import available_cores, exact_weight_bits
from autoq.targets import TargetInfo, load_target, target_info
from autoq.targets.bits import check_executor
from autoq.trial.context import TrialContext, prepare
from autoq.trial.finetune import finetuned
from autoq.trial.run import trained

FILES = {"onnx": "model.onnx", "openvino": "model.xml", "packed": "model.safetensors", "qonnx": "model.onnx"}
"""Format -> name of the model file. `onnx` is for the target's runtime, `packed` for storage."""

QONNX = "qonnx"
"""The format of targets without a runtime of their own."""


@dataclass(frozen=True)
class Exported:
    """An exported point: the model file, the bytes of all model files, and the verified quantities."""

    file: Path
    bytes: int
    lines: tuple[Line, ...]

    def document(self) -> dict[str, Any]:
        """JSON data: file, bytes, payload, and the study's and the file's values by name."""
        found = {line.name: line.found for line in self.lines}
        return {
            "file": str(self.file),
            "bytes": self.bytes,
            "payload_bytes": found["size" if self.file.name == FILES["packed"] else "size_runtime"],
            "expected": {line.name: line.expected for line in self.lines if line.expected is not None},
            "found": found,
            "agreement_db": found["agreement"],
            "faster_than_float": verify.faster(self.lines),
            "warnings": self.warnings,
            "lines": [asdict(line) for line in self.lines],
        }

    @property
    def warnings(self) -> list[str]:
        """Messages about values outside their tolerance."""
        return list(verify.mismatches(self.lines).values())

    def in_words(self) -> list[Mapping[str, str]]:
        """The verified quantities as text: name, expected, found, tolerance, holds."""
        return [_in_words(line) for line in self.lines]


def check_format(name: str, target: str) -> None:
    """Raise InputError for an unknown format, or one that the target cannot read."""
    if name not in FILES:
        raise InputError(f"--format '{name}': {unknown('format', name, FILES)}")
    if target_info(target).file == QONNX:
        if name != QONNX:
            raise InputError(
                f"--format {name} stores integers of at most 8 bits, target '{target}' has wider ones; type --format qonnx"
            )
        check_executor()
    elif name == QONNX:
        raise InputError(f"--format {name} is for studies of target 'bits', this one is for '{target}'; type --format onnx")
    if name == "openvino" and not target.startswith("openvino"):
        raise InputError(f"--format openvino is for OpenVINO targets, this study is for '{target}'; type --format onnx")


def check_folder(folder: Path) -> None:
    """Raise InputError for an output folder that is not empty or cannot be created."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"--output '{folder}' exists and is not an empty folder; give a new folder")
    if not folder.absolute().parent.is_dir():
        raise InputError(f"--output '{folder}': no such folder '{folder.absolute().parent}'; create it first")


def export_record(
    study: Study, record: Record, format: str, folder: Path, phase: Callable[[str], None], strict: bool = False
) -> Exported:
    """Export a point to a new folder: model, policy.json, README.md (model card) and, if a runtime loads it, run.py.

    Args:
        study: The study.
        record: The point's record.
        format: A key of FILES.
        folder: Output folder; must be new or empty.
        phase: Called with a description of every phase.
        strict: Raise for a measured latency outside its tolerance, too. Without this it is a warning, because other
            processes may have used the machine.

    Returns:
        The exported files and the verified quantities.

    Raises:
        InputError: The format or the folder cannot be used.
        AutoqError: Sizes, qualities or a modelled latency differ from the study. No folder is left behind.
    """
    check_format(format, study.spec.trial.target)
    check_folder(folder)
    partial = folder.absolute().with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        exported = write(retrain(study, record, phase), format, partial, phase)
        mismatches, target = verify.mismatches(exported.lines), target_info(study.spec.trial.target)
        only_latency = mismatches.keys() == {"latency"} and target.model is None
        if mismatches and (strict or not only_latency):
            advice = ""
            if only_latency:
                advice = "; stop other processes on this machine and export again, or leave out --strict"
            elif target.overflows and study.spec.trial.exact_weight_bits > exact_weight_bits():
                advice = "; 8-bit weights overflow on this processor (no VNNI): repeat the search on this machine"
            raise AutoqError(
                f"{point_name(record)} of study '{study.name}': the exported file differs from the study:"
                f" {'; '.join(mismatches.values())}{advice}"
            )
        if folder.is_dir():
            folder.rmdir()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Exported(folder / exported.file.name, exported.bytes, exported.lines)


def unpack_to(file: Path, folder: Path) -> Path:
    """Extract the runtime's file and the policy from a package into a new folder.

    Args:
        file: A package, written with --format packed.
        folder: Output folder; must be new or empty.

    Returns:
        Path of the runtime's file.

    Raises:
        InputError: The file is not a package, or the folder cannot be used.
    """
    check_folder(folder)
    package = unpack(file)
    folder.mkdir(exist_ok=True)
    path = folder / FILES["onnx"]
    with atomic_write(path) as partial:
        partial.write_bytes(_runtime_file(package))
    atomic_write_text(folder / "policy.json", json.dumps({"policy": package.policy.to_dict()}, indent=1) + "\n")
    return path


def _runtime_file(package: Packed) -> bytes:
    """The runtime's file of a package."""
    return bytes(for_runtime(package.model, package.widths).SerializeToString())


@dataclass(frozen=True)
class Retrained:
    """A point trained again. model: the graph for the target's runtime; package: the packed form, None for QONNX targets."""

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
        """Bytes of the tensors, checked against the study."""
        expected, package = self.record.values, self.package
        packed = packed_size(self.model) if package is None else packed_payload_bytes(package)
        lines = [
            verify.equal("size", expected["size"], packed),
            verify.equal("size_runtime", expected["size_runtime"], payload_bytes(self.model)),
        ]
        return lines if package is None else [*lines, verify.overhead(len(package) - packed, len(self.context.traced.layers))]

    @functools.cached_property
    def latency(self) -> list[Line]:
        """Latency, checked against the study; measured once, as all formats contain the same runtime file."""
        table, expected = read_table(self.study.latency_path), self.record.values["latency"]
        return verify.latency(self.context, self.graph, self.study.spec, table, self.file, self.policy, expected)


def retrain(study: Study, record: Record, phase: Callable[[str], None], context: TrialContext | None = None) -> Retrained:
    """Train a point again as its trial did, to the same weights; those of a finetuned point are read. `context`: the study's."""
    spec, policy = study.spec, Policy.from_dict(record.policy)
    if context is None:
        phase("preparing the float network")
        context = prepare(spec.trial, available_cores())
    graph = stored_graph(study.graph_path, context.traced)
    if record.source == "finetuned":
        quantized = finetuned(context, policy, _weights(study, record))
    else:
        phase(f"retraining {point_name(record)}: {record.steps} steps")
        quantized = trained(context, policy, record.steps)
    file = target_info(spec.trial.target).file
    if file == QONNX:
        return Retrained(study, record, policy, context, graph, quantized, write_qonnx(graph, quantized), None)
    widths, plain = weight_widths(quantized), PLAIN[file](graph, quantized)
    package = pack(plain, widths, policy)
    return Retrained(study, record, policy, context, graph, quantized, for_runtime(plain, widths), package)


def _weights(study: Study, record: Record) -> Path:
    path = study.weights_path(Policy.from_dict(record.policy), record.steps)
    if not path.is_file():
        raise InputError(f"{point_name(record)}: its weights are missing ({path}); finetune it again")
    return path


def write(point: Retrained, format: str, folder: Path, phase: Callable[[str], None]) -> Exported:
    """Write a point to an empty folder, reload it and measure it. Mismatches are not raised yet."""
    phase("writing and verifying the file")
    spec, expected = point.study.spec, point.record.values
    path = folder / FILES[format]
    if format == "openvino":
        write_ir(point.file, path)
    elif format == "packed" and point.package is not None:
        path.write_bytes(point.package)
    else:
        path.write_bytes(point.file)
    reloaded = _runtime_file(unpack(path)) if format == "packed" else path
    run = load_target(spec.trial.target).load(reloaded, spec.latency_threads)
    lines = [
        *verify.qualities(point.context, run, point.quantized, expected),
        *point.payload,
    ]
    if target_info(spec.trial.target).latency:
        phase("measuring the latency")
        lines += point.latency
    written = sum(written_file.stat().st_size for written_file in folder.iterdir())
    _describe(point.study, point.record, point.policy, format, folder, lines, point.context.traced.multiple)
    return Exported(path, written, tuple(lines))


def _describe(
    study: Study, record: Record, policy: Policy, format: str, folder: Path, lines: Sequence[Line], multiple: int
) -> None:
    """Write policy.json, the model card and the run script."""
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
        "warnings": list(verify.mismatches(lines).values()),
        "target": target_info(spec.trial.target),
        "multiple": multiple,
        "sides": "any height and width" if multiple == 1 else f"height and width are multiples of {multiple}",
        "versions": study.environment.get("versions", {}),
        "machine": study.environment.get("machine", ""),
    }
    (folder / "README.md").write_text(environment.get_template("card.md.j2").render(facts))
    if format not in ("packed", QONNX):
        (folder / "run.py").write_text(environment.get_template("run.py.j2").render(facts))


def _formats(policy: Policy, target: TargetInfo) -> list[tuple[str, dict[str, str]]]:
    """The stages, each with a description of its format by role."""
    in_float = "bfloat16" if target.bfloat16 else "float32"

    def words(role: Role, quant: TensorQuant) -> str:
        if quant.is_float and policy.output == "uint8":
            return ""  # the stage has no such tensor, as nothing is float in this network
        if quant.bits > target.integer_bits:
            return f"float16, run as {in_float}" if role == "weight" and not quant.is_float else in_float
        return f"{quant.bits} bits per {quant.granularity}, {quant.quantizer}, {quant.clipping} range"

    return [(stage, {role: words(role, quant.role(role)) for role in ROLES}) for stage, quant in policy.stages]


def _in_words(line: Line) -> Mapping[str, str]:
    interval = ""
    if line.low is not None and line.high is not None:
        interval = f" ({verify.in_unit(line.name, line.low)} to {verify.in_unit(line.name, line.high)})"
    return {
        "name": line.name.replace("_", " "),
        "expected": "" if line.expected is None else verify.in_unit(line.name, line.expected),
        "found": verify.in_unit(line.name, line.found) + interval,
        "tolerance": line.tolerance,
        "holds": {True: "yes", False: "no", None: ""}[line.holds],
    }
