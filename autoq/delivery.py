"""A point of a study as files that run: trained again, written, reloaded, and held against what the study promised.

A trial is deterministic, so its weights are not kept: training the policy again gives them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2

from autoq import verify
from autoq.errors import AutoqError, InputError, unknown
from autoq.export.formats import PLAIN
from autoq.export.ir import write_ir
from autoq.export.onnx import export_graph, for_runtime, payload_bytes, weight_widths
from autoq.export.packed import pack, unpack
from autoq.export.packed import payload_bytes as packed_payload_bytes
from autoq.files import whole, write_whole
from autoq.findings import point_name
from autoq.objectives import PSNR_TO_FLOAT
from autoq.objectives.latency import read_table
from autoq.policy import ROLES, Policy, Role, TensorQuant
from autoq.spec import Record
from autoq.study import Study
from autoq.targets import load_target, target_info
from autoq.trial import trained
from autoq.verify import Line
from autoq.workbench import prepare

FILES = {"onnx": "model.onnx", "openvino": "model.xml", "packed": "model.safetensors"}
"""Format -> the file that is asked for. With `onnx`, what the target's runtime loads; with `packed`, what is stored."""


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
            "lines": [asdict(line) for line in self.lines],
        }

    def in_words(self) -> list[Mapping[str, str]]:
        """The lines as text: name, promised, found, tolerance, holds."""
        return [_in_words(line) for line in self.lines]


def check_format(name: str, target: str) -> None:
    """Raise InputError for a format that does not exist, or that a target does not read."""
    if name not in FILES:
        raise InputError(f"--format '{name}': {unknown('format', name, FILES)}; type --format onnx")
    if target_info(target).file not in PLAIN:
        raise InputError(
            f"target '{target}' has no runtime here that a file could be held against; export a study of another target"
        )
    if name == "openvino" and not target.startswith("openvino"):
        raise InputError(f"--format 'openvino': {target} reads ONNX; type --format onnx")


def check_folder(folder: Path) -> None:
    """Raise InputError for a folder that holds anything, or that cannot be made."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"--output '{folder}': it holds other files; give a new folder")
    if not folder.absolute().parent.is_dir():
        raise InputError(f"--output '{folder}': there is no folder '{folder.absolute().parent}'; make it first")


def deliver(study: Study, record: Record, format: str, folder: Path, phase: Callable[[str], None]) -> Delivered:
    """Write a point to a new folder: model, policy.json, README.md (model card) and run.py.

    Raises AutoqError, and leaves no folder, where the file does not do what the study promised.
    """
    check_format(format, study.spec.trial.target)
    check_folder(folder)
    partial = folder.absolute().with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        delivered = _write(study, record, format, partial, phase)
        if wrong := verify.broken(delivered.lines):
            measured = target_info(study.spec.trial.target).model is None
            again = measured and set(wrong) == {"latency"}
            advice = "; type the command again when nothing else runs on this machine" if again else ""
            found = "; ".join(wrong.values())
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
        partial.write_bytes(for_runtime(found.model).SerializeToString())
    write_whole(folder / "policy.json", json.dumps({"policy": found.policy.to_dict()}, indent=1) + "\n")
    return path


def _write(study: Study, record: Record, format: str, folder: Path, phase: Callable[[str], None]) -> Delivered:
    spec, name, policy = study.spec, point_name(record), Policy.from_dict(record.policy)
    phase("preparing the float network")
    bench = prepare(spec.trial)
    phase(f"training {name} again: {record.steps} steps")
    quantized = trained(bench, policy, record.steps)
    phase("writing and checking the file")
    graph = export_graph(bench.traced)
    plain = PLAIN[target_info(spec.trial.target).file](graph, quantized)
    package = pack(plain, weight_widths(quantized), policy)
    model = for_runtime(plain)
    file: bytes = model.SerializeToString()
    path = folder / FILES[format]
    if format == "onnx":
        path.write_bytes(file)
    elif format == "openvino":
        write_ir(file, path)
    else:
        path.write_bytes(package)
    reloaded = for_runtime(unpack(path).model).SerializeToString() if format == "packed" else path
    run = load_target(spec.trial.target).load(reloaded, spec.latency_threads)
    promised = record.values
    lines = [
        *verify.qualities(bench, run, promised),
        *verify.agreement(bench, run, quantized, promised[PSNR_TO_FLOAT]),
        verify.exact("size", promised["size"], packed_payload_bytes(package)),
        verify.exact("size_runtime", promised["size_runtime"], payload_bytes(model)),
        verify.overhead(len(package) - packed_payload_bytes(package)),
    ]
    phase("measuring its latency")
    lines += verify.latency(bench, graph, spec, read_table(study.latency_path), file, policy, promised["latency"])
    written = sum(each.stat().st_size for each in folder.iterdir())
    _describe(study, record, policy, format, folder, lines)
    return Delivered(path, written, tuple(lines))


def _describe(study: Study, record: Record, policy: Policy, format: str, folder: Path, lines: Sequence[Line]) -> None:
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
        "stages": _formats(policy, target_info(spec.trial.target).integer_bits),
        "lines": [_in_words(line) for line in lines],
        "target": target_info(spec.trial.target),
        "versions": study.environment.get("versions", {}),
        "machine": study.environment.get("machine", ""),
    }
    (folder / "README.md").write_text(environment.get_template("card.md.j2").render(facts))
    if format != "packed":
        (folder / "run.py").write_text(environment.get_template("run.py.j2").render(facts))


def _formats(policy: Policy, integer_bits: int) -> list[tuple[str, dict[str, str]]]:
    """stage, and its formats by role in words."""

    def words(role: Role, quant: TensorQuant) -> str:
        if quant.is_float and policy.output == "uint8":
            return ""  # the stage has no such tensor: nothing is float there
        if quant.bits > integer_bits:
            return "float16, run as float32" if role == "weight" and not quant.is_float else "float32"
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
