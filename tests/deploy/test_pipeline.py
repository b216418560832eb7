"""A point of a study as files: what they hold, that they do what the study says, and that nothing is left where they do not."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from autoq import export_point, unpack
from autoq.cli import main
from autoq.config.policy import Policy, all_float, uniform
from autoq.config.spec import StudySpec, TrialSpec
from autoq.config.structure import Structure
from autoq.costs.latency.table import read_table
from autoq.deploy import pipeline, verify
from autoq.errors import AutoqError, InputError
from autoq.export.onnx import export_graph, save_graph
from autoq.study.study import Study
from autoq.targets import load_target
from autoq.targets.openvino_cpu_bf16 import OpenVINOBFloat16
from autoq.trial.context import input_hashes
from autoq.trial.run import run_trial
from autoq.tuning.options import search_space
from tests.cli.test_cli import run
from tests.contexts import latency_pass, prepared

SPACE = """
roles:
  weight: {bits: [4, 8, 16], quantizer: lsq, clipping: minmax}
  activation: {bits: [6, 8, 16], quantizer: lsq, clipping: minmax}
  skip: {bits: [8, 32], quantizer: lsq, clipping: minmax}
"""
NAMES = {"float": "32/32/32", "8/8/8": "8/8/8", "4/6/8": "4/6/8"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_weights: Path, small_images: dict[str, Any]) -> Path:
    """A study of a tiny network with three baselines, trained for two steps."""
    folder = tmp_path_factory.mktemp("studies")
    (folder / "space.yaml").write_text(SPACE)
    trial = TrialSpec(model="srresnet", scale=2, weights=tiny_weights, steps=2, batch=2, patches=4, **small_images)
    space = search_space(trial, folder / "space.yaml")
    spec = StudySpec(
        trial=trial, space=space.to_dict(), objectives=("size", "latency", "psnr"), frame=(32, 24), inputs=input_hashes(trial)
    )
    study = Study.create(folder / "study", spec, {"command": "", "python": "", "machine": "a", "versions": {"torch": "2"}})
    latency = latency_pass(study)
    save_graph(latency.graph, study.graph_path)
    table = latency.measure()
    study.latency_path.write_text(table.model_dump_json())
    for name, bits in NAMES.items():
        policy = uniform(bits, space.facts.stages, "lsq", "minmax")
        study.add_baseline(name, policy, run_trial(latency.context, policy, table, latency.graph), Structure())
    study.close()
    return folder / "study"


@pytest.fixture
def study(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """Latencies of a network this small are noise."""
    monkeypatch.setattr(verify, "LATENCY_TOLERANCE", 1e9)
    return Study.open(finished)


def expected(study: Study, name: str) -> dict[str, float]:
    return next(record.values for record in study.records() if record.name == name)


@pytest.mark.parametrize("name", NAMES)
def test_a_point_exports_as_expected(study: Study, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoq.export.onnx.export_graph", None)  # the study has it
    found = export_point(study, tmp_path / "out", pick=name)
    values = expected(study, name)
    lines = {line.name: line for line in found.lines}
    assert lines["size"].found == values["size"]
    assert lines["size_runtime"].found == values["size_runtime"]
    assert lines["overhead"].found <= 64 * 1024
    assert lines["psnr"].found == pytest.approx(values["psnr"], abs=0.05)
    assert lines["agreement"].found >= 50
    assert lines["latency"].low is not None
    assert lines["latency"].low <= lines["latency"].found
    assert all(line.holds is not False for line in found.lines)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.onnx", "policy.json", "README.md", "run.py"}
    document = json.loads((tmp_path / "out" / "policy.json").read_text())
    assert Policy.from_dict(document["policy"]) == uniform(NAMES[name], study.space.facts.stages, "lsq", "minmax")
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| size | {values['size']:,.0f} bytes | {values['size']:,.0f} bytes | equal | yes |" in card
    assert "| body |" in card
    assert "32x24 input pixels and 1 thread: 25 runs after one warm-up run, alternating with the float network" in card
    assert ("**Not faster than float:**" in card) == (found.document()["faster_than_float"] is False)


def test_the_snippet_upscales_an_image(study: Study, tmp_path: Path) -> None:
    export_point(study, tmp_path / "out", pick="8/8/8")
    pixels = np.random.default_rng(0).integers(0, 256, (20, 31, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / "in.png")
    subprocess.run([sys.executable, "out/run.py", "in.png", "out.png"], cwd=tmp_path, check=True, timeout=120)
    with PIL.Image.open(tmp_path / "out.png") as image:
        found = np.asarray(image)
    run = load_target("openvino-cpu").load(tmp_path / "out" / "model.onnx", 1)
    expected = run(torch.from_numpy(pixels).permute(2, 0, 1)[None].numpy().astype(np.float32) / 255)[0].transpose(1, 2, 0)
    np.testing.assert_array_equal(found, (expected.clip(0, 1) * 255).round().astype(np.uint8))


def test_a_study_in_bfloat16_exports_what_runs_in_bfloat16(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpenVINOBFloat16, "missing", staticmethod(lambda: None))  # without it OpenVINO computes in float32
    there = shutil.copytree(study.folder, tmp_path / "study")
    for path in (there / "study.yaml", study.latency_path):
        copied = there / path.name
        copied.write_text(copied.read_text().replace("openvino-cpu", "openvino-cpu-bf16"))
    trial = TrialSpec(**{**study.spec.trial.model_dump(), "target": "openvino-cpu-bf16"})
    context, table = prepared(trial), read_table(there / "latency.json")
    result = run_trial(context, all_float(study.space.choices), table, export_graph(context.traced))
    judged = next(record for record in study.records() if record.name == "float").model_copy(update={"values": result.values})
    (there / "trials.jsonl").write_text(judged.model_dump_json() + "\n")
    found = export_point(Study.open(there), tmp_path / "out", pick="float")
    assert next(line.found for line in found.lines if line.name == "agreement") >= 50
    assert '"INFERENCE_PRECISION_HINT": "bf16"' in (tmp_path / "out" / "run.py").read_text()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| body | bfloat16 | bfloat16 | bfloat16 |" in card
    assert "float32 |" not in card


def test_a_package_unpacks_to_the_same_runtime_file(study: Study, tmp_path: Path) -> None:
    packed = export_point(study, tmp_path / "packed", pick="4/6/8", format="packed")
    plain = export_point(study, tmp_path / "plain", pick="4/6/8")
    assert packed.document()["payload_bytes"] == expected(study, "4/6/8")["size"]
    assert packed.bytes == packed.file.stat().st_size
    assert "autoq unpack model.safetensors" in (tmp_path / "packed" / "README.md").read_text()
    path = unpack(packed.file, tmp_path / "unpacked")
    assert path.read_bytes() == plain.file.read_bytes()
    assert json.loads((tmp_path / "unpacked" / "policy.json").read_text())["policy"]["stages"]["body"]["weight"]["bits"] == 4


def test_openvino_s_own_format_runs(study: Study, tmp_path: Path) -> None:
    found = export_point(study, tmp_path / "out", pick="8/8/8", format="openvino")
    assert found.file.name == "model.xml"
    assert found.bytes == sum((tmp_path / "out" / name).stat().st_size for name in ("model.xml", "model.bin"))
    assert next(line for line in found.lines if line.name == "agreement").found >= 50


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("size", 1, r"size is .* bytes, expected .* bytes \(equal\)"),
        ("psnr", 0.06, r"psnr is .* dB, expected .* dB \(within 0.05\)"),
        ("ssim", -0.06, r"ssim is .*, expected .* \(within 0.05\)"),
        ("fidelity", 0.6, r"fidelity is .* dB, expected .* dB \(within 0.5\)"),
    ],
)
def test_what_does_not_hold_fails_and_leaves_nothing(study: Study, tmp_path: Path, name: str, more: float, message: str) -> None:
    record = next(each for each in study.records() if each.name == "8/8/8")
    wrong = record.model_copy(update={"values": {**record.values, name: record.values[name] + more}})
    with pytest.raises(AutoqError, match=message):
        pipeline.export_record(study, wrong, "onnx", tmp_path / "out", lambda text: None)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def slower(finished: Path, tmp_path: Path) -> Study:
    """A study of 8/8/8 alone whose table says a thousand times as much for all but the float network: no other load explains that."""
    folder = shutil.copytree(finished, tmp_path / "study")
    table = json.loads((folder / "latency.json").read_text())
    for entry in list(table["entries"].values())[1:]:
        entry["ms"] *= 1000
        entry["samples"] = [1000 * sample for sample in entry["samples"]]
    (folder / "latency.json").write_text(json.dumps(table))
    record = next(each for each in Study.open(folder).records() if each.name == "8/8/8")
    record = record.model_copy(update={"values": {**record.values, "latency": 1000 * record.values["latency"]}})
    (folder / "trials.jsonl").write_text(record.model_dump_json() + "\n")
    return Study.open(folder)


def test_a_latency_that_is_not_found_again_is_a_warning(
    slower: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    warning = re.compile(r"latency is [0-9.]+ ms, expected [0-9.]+ ms \(within 10% of [0-9.]+ to [0-9.]+ ms\)")
    command = ["export", str(slower.folder), "--pick", "compromise", "-o"]
    code, out, err = run(capsys, monkeypatch, *command, str(tmp_path / "text"), "--quiet")
    assert (code, err) == (0, "")
    assert re.search(f"^warning: {warning.pattern}$", out, re.MULTILINE)
    assert out.splitlines()[-1] == str(tmp_path / "text" / "model.onnx"), "it is not said to be as expected"
    card = (tmp_path / "text" / "README.md").read_text()
    assert re.search(rf"\*\*Warning:\*\* {warning.pattern}\. Another process may have used the machine", card)
    assert re.search(r"\| latency \| .* \| no \|", card)
    code, out, err = run(capsys, monkeypatch, *command, str(tmp_path / "data"), "--json", "--quiet")
    assert (code, err) == (0, "")
    (said,) = json.loads(out)["warnings"]
    assert warning.fullmatch(said)


def test_strict_refuses_a_latency_that_is_not_found_again(
    slower: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", str(slower.folder), "--pick", "compromise", "-o", str(tmp_path / "out"), "--quiet", "--strict"]
    code, out, err = run(capsys, monkeypatch, *command)
    assert (code, out) == (1, "")
    assert re.search(r"latency is .* ms, expected .* ms \(within 10%.*stop other processes.*or leave out --strict$", err.strip())
    assert not (tmp_path / "out").exists()


def test_bytes_that_differ_are_an_error_whatever_the_latency_is(slower: Study, tmp_path: Path) -> None:
    (record,) = slower.records()
    wrong = record.model_copy(update={"values": {**record.values, "size_runtime": record.values["size_runtime"] - 1}})
    with pytest.raises(AutoqError, match="latency .* ms; size_runtime .* bytes|size_runtime .* bytes.*; latency .* ms") as error:
        pipeline.export_record(slower, wrong, "onnx", tmp_path / "out", lambda text: None)
    assert "--strict" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pick", "compromise", "--format", "onxx"], "unknown format 'onxx'"),
        (
            ["--pick", "compromise", "--format", "qonnx"],
            "--format qonnx is for studies of target 'bits', this one is for 'openvino-cpu'; type --format onnx",
        ),
        (["--pick", "4/4/4"], "no such rule, objective or point"),
        (["--trial", "7"], "the study has no point 'trial 7'; type --pick with one of float, 8/8/8, 4/6/8"),
        ([], "expected either --trial or --pick; type `--pick compromise` or `--trial N`"),
        (["--pick", "compromise", "--trial", "1"], "expected either --trial or --pick; type `--pick compromise` or `--trial N`"),
        (["--pick", "compromise", "-o", "used"], "--output 'used' exists and is not an empty folder; give a new folder"),
        (["--pick", "compromise", "-o", "no/such"], "no such folder"),
    ],
)
def test_bad_input_is_one_line(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    monkeypatch.setattr("sys.argv", ["autoq", "export", str(finished), *(["-o", "new"] if "-o" not in options else []), *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not (tmp_path / "new").exists()


def test_the_command_prints_what_was_found(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, options in (("a", []), ("b", ["--json"])):
        monkeypatch.setattr(
            "sys.argv", ["autoq", "export", str(study.folder), "--pick", "compromise", "-o", str(tmp_path / name), *options]
        )
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        out = capsys.readouterr().out
        if options:
            found = json.loads(out)
            assert found["found"]["size"] == found["expected"]["size"]
            assert found["agreement_db"] >= 50
        else:
            assert ": as expected" in out
            assert "equal" in out


def test_weights_that_changed_are_refused(finished: Path, tmp_path: Path, tiny_weights: Path) -> None:
    study = Study.open(finished)
    changed = study.spec.model_copy(update={"inputs": {**study.spec.inputs, "weights": "0" * 12}})
    study.spec = changed
    with pytest.raises(AutoqError, match="--weights has changed since the study began"):
        export_point(study, tmp_path / "out", pick="8/8/8")


def test_no_package_no_file(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="not an autoq package"):
        unpack(tmp_path / "x.safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()
