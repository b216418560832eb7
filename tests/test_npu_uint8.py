"""A study on npu-uint8 from its latency table to files that are put to use."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from autoq import evaluate, export_point, unpack, upscale
from autoq.config.policy import Policy
from autoq.config.spec import StudySpec, TrialSpec
from autoq.config.structure import Structure
from autoq.costs.latency.analytic import milliseconds
from autoq.deploy import pipeline
from autoq.errors import AutoqError
from autoq.report.build import page_data
from autoq.study.study import Study
from autoq.targets.model import SYNAPTICS
from autoq.trial.context import input_hashes
from autoq.trial.run import run_trial
from autoq.tuning.baselines import baselines
from autoq.tuning.initial_trials import probe, propose_initial_trials
from autoq.tuning.latency_pass import check_table
from autoq.tuning.options import space_by
from tests.contexts import latency_pass

SPACE = """
roles:
  weight: {bits: [4, 8, 16], quantizer: [minmax, lsq], clipping: minmax}
  activation: {bits: [6, 8], quantizer: lsq, clipping: [minmax, mse]}
  skip: {bits: [8, 32], quantizer: lsq, clipping: minmax}
"""


def made(folder: Path, weights: Path, images: dict[str, Any], by: str) -> Study:
    (folder / "space.yaml").write_text(SPACE)
    trial = TrialSpec(model="srresnet", scale=2, weights=weights, target="npu-uint8", steps=2, batch=2, patches=4, **images)
    space = space_by(trial, folder / "space.yaml", by)
    spec = StudySpec(
        trial=trial.model_copy(update={"layers": tuple(space.layers.items())}), space=space.to_dict(), by=by, frame=(32, 24), replications=1,
        objectives=("size", "latency", "psnr"), inputs=input_hashes(trial),
    )  # fmt: skip
    return Study.create(folder / "study", spec, {"command": "", "python": "", "machine": "a", "versions": {"torch": "2"}})


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, tiny_weights: Path, small_images: dict[str, Any]) -> Study:
    """A tiny network with both baselines that such a target has, trained for two steps."""
    study = made(tmp_path_factory.mktemp("npu"), tiny_weights, small_images, "stage")
    latency = latency_pass(study)
    table = latency.measure()
    study.latency_path.write_text(table.model_dump_json())
    policies = baselines(study.space.facts, first_last_16=True)
    assert list(policies) == ["float", "8/8/8"], "no other width is there"
    for name, policy in policies.items():
        study.add_baseline(name, policy, run_trial(latency.context, policy, table, latency.graph), Structure())
    study.close()
    return Study.open(study.folder)


def test_latency_is_the_model_s(study: Study) -> None:
    latency = latency_pass(study)
    values = {record.name: record.values for record in study.records()}
    for record in study.records():
        policy = Policy.from_dict(record.policy)
        ms = milliseconds(latency.context.plan_for(policy), (32, 24), SYNAPTICS)
        assert record.values["latency"] == round(ms, 3)
        assert policy.output == ("float" if record.name == "float" else "uint8")
    assert values["float"]["latency"] == pytest.approx(4 * values["8/8/8"]["latency"], abs=0.003)
    again = latency.remeasure([Policy.from_dict(record.policy) for record in study.records()])
    assert set(again.samples.values()) == {()}, "nothing is measured"
    facts = page_data(study, study.results())
    assert facts["latency_note"].startswith("Latency is modelled, not measured")
    assert not any("a frame of the float network" in tile["text"] for tile in facts["tiles"])


def test_seeds_give_uint8(study: Study) -> None:
    latency = latency_pass(study)
    context, graph, table = latency.context, latency.graph, latency.measure()
    found = propose_initial_trials(context, study.space, study.spec.objectives, table, 3, probe(context, graph, study.space))
    seeds = [Policy.from_dict(seed) for seed in found.initial_trials]
    assert {(seed.label, seed.output) for seed in seeds} == {("8 8/8/8 8/8 8/8", "uint8")}, "clippings apart all are one policy"
    for seed in seeds:
        study.space.parameters(seed)


def test_single_layers_too_many_to_list_have_one_latency(
    tmp_path: Path, tiny_weights: Path, small_images: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoq.costs.latency.structure.MOST_COMBINATIONS", 3)
    study = made(tmp_path, tiny_weights, small_images, "layer")
    latency = latency_pass(study)
    table = latency.measure()
    check_table(table, study.spec, latency.context)
    policies = [policy for _, policy in zip(range(40), study.space.enumerate(), strict=False)]
    fuller = latency.add(table, policies)
    exact, *others = [entry.ms for entry in fuller.entries.values()]
    assert len(set(others)) == 1
    assert exact > others[0]
    assert fuller.ms("another", policies[0]) == pytest.approx(others[0], abs=1e-3)
    study.close()


@pytest.fixture(scope="module")
def exported(study: Study, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of a point's files, and what was found of them."""
    folder = tmp_path_factory.mktemp("exported") / "out"
    return folder, export_point(study, folder, pick="8/8/8").document()


def test_a_point_is_exported_and_put_to_use(study: Study, exported: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    values = next(record.values for record in study.records() if record.name == "8/8/8")
    folder, found = exported
    assert found["found"]["latency"] == pytest.approx(values["latency"], abs=1e-3)
    assert found["found"]["size"] == values["size"]
    assert found["agreement_db"] >= 50
    card = (folder / "README.md").read_text()
    assert "- Input `input`: uint8, `[1, 3, height, width]`, RGB from 0 to 255, any height and width." in card
    assert "- Output `output`: uint8, `[1, 3, 2 height, 2 width]`" in card
    assert "is modelled, not measured" in card
    assert "measured again" not in card
    assert "float32 |" not in card
    judged = evaluate(folder / "model.onnx", target="npu-uint8", data=study.spec.trial.eval_data)["metrics"]
    assert judged["psnr"] == pytest.approx(values["psnr"], abs=0.05)

    pixels = np.random.default_rng(0).integers(0, 256, (90, 131, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / "in.png")
    subprocess.run([sys.executable, str(folder / "run.py"), "in.png", "by_snippet.png"], cwd=tmp_path, check=True, timeout=120)
    upscale(folder / "model.onnx", tmp_path / "in.png", tmp_path / "tiled.png", target="npu-uint8", tile=64)
    images = [np.asarray(PIL.Image.open(tmp_path / name)) for name in ("by_snippet.png", "tiled.png")]
    assert images[0].shape == (180, 262, 3)
    np.testing.assert_array_equal(*images)


def test_a_package_is_exactly_the_expected_size(study: Study, exported: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    packed = export_point(study, tmp_path / "packed", pick="8/8/8", format="packed")
    values = next(record.values for record in study.records() if record.name == "8/8/8")
    assert packed.document()["payload_bytes"] == values["size"]
    assert unpack(packed.file, tmp_path / "unpacked").read_bytes() == (exported[0] / "model.onnx").read_bytes()
    assert json.loads((tmp_path / "unpacked" / "policy.json").read_text())["policy"]["output"] == "uint8"


def test_another_latency_than_the_model_s_fails(study: Study, tmp_path: Path) -> None:
    record = next(record for record in study.records() if record.name == "8/8/8")
    record = record.model_copy(update={"values": {**record.values, "latency": 1.0}})
    with pytest.raises(AutoqError, match=r"latency is .* ms, expected 1.000 ms \(equal\)$"):
        pipeline.export_record(study, record, "onnx", tmp_path / "out", lambda text: None)
    assert not (tmp_path / "out").exists()
