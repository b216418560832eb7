"""The rivals in miniature: a network of one block, really quantized by NNCF and ONNX Runtime, and the rule of dominance."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import autoq
from autoq.config.policy import uniform
from autoq.config.spec import StudySpec, TrialSpec
from autoq.config.structure import Structure
from autoq.costs.latency.table import LatencyTable
from autoq.export.onnx import export_graph
from autoq.study.study import Study
from autoq.targets import why_unusable
from autoq.trial.context import prepare
from autoq.trial.run import run_trial
from autoq.tuning.options import search_space
from benchmarks import deploy
from benchmarks.rivals import RIVALS, File, Rival, run_in
from benchmarks.standing import Found, Point, verdict
from tests.conftest import small_image

BASELINES = {"float": "32/32/32", "8/8/8": "8/8/8", "6/6/8": "6/6/8"}
NNCF = [f"NNCF {what}{how}" for what in ("PTQ", "accuracy control") for how in ("", ", mixed")]
NNCF += ["NNCF PTQ, accurate bias", "NNCF PTQ, mixed, accurate bias"]
ORT = [f"ORT static, {how}{where}" for how in ("min-max", "entropy", "percentile") for where in ("", ", in ONNX Runtime")]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, tiny_weights: Path) -> Study:
    """Three baselines after one step of training: the front is the float network and some of the others."""
    folder = tmp_path_factory.mktemp("deploy")
    images = {name: small_image(folder / name, seed) for seed, name in enumerate(("data", "eval_data", "test_data"))}
    trial = TrialSpec(model="srresnet", scale=2, weights=tiny_weights, steps=1, batch=1, patches=1, **images)
    space = search_space(trial)
    spec = StudySpec(trial=trial, space=space.to_dict(), objectives=("size", "psnr"), frame=(24, 16))
    study = Study.create(folder / "study", spec, {"command": "", "python": "", "machine": "", "versions": {}})
    facts = {"model": trial.model, "target": trial.target, "runtime": "", "machine": ""}
    unmeasured = LatencyTable(frame=spec.frame, threads=1, entries={}, **facts)
    context = prepare(trial)
    graph = export_graph(context.traced)
    for name, bits in BASELINES.items():
        policy = uniform(bits, space.facts.stages, "lsq", "mse")
        study.add_baseline(name, policy, run_trial(context, policy, unmeasured, graph), Structure())
    study.close()
    return study


def run(monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    monkeypatch.setattr(sys, "argv", ["deploy.py", *options])
    deploy.main()


def test_a_front_among_its_rivals(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    others = small_image(tmp_path / "others", 2)
    run(monkeypatch, str(study.folder.absolute()), "--eval-data", str(others), "--rounds", "1", "--json")
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    reason = why_unusable("openvino-cpu-bf16")
    bfloat16 = {} if reason is None else {"bfloat16": reason}
    assert (found["bench"], found["failed"]) == ("deploy", bfloat16)
    figures, points = found["figures"], {point["name"]: point for point in found["points"]}
    rivals = {name for name, point in points.items() if point["group"] == "rival"}
    assert rivals | {*bfloat16} == {"float32", "float32, in ONNX Runtime", "bfloat16", *NNCF, *ORT}
    assert figures["rivals"] == len(rivals)
    assert (figures["images"], figures["images_searched_on"]) == (1, 0)
    exact = points["float32"]
    spec = study.spec.trial
    alone = autoq.evaluate(model=spec.model, weights=spec.weights, scale=spec.scale, data=others, metrics="psnr")
    assert exact["psnr"] == pytest.approx(alone["metrics"]["psnr"], abs=1e-3)
    assert figures["nncf_ptq_psnr_drop"] == pytest.approx(exact["psnr"] - points["NNCF PTQ"]["psnr"], abs=2e-4)
    if reason is None:
        assert points["bfloat16"]["loaded"] == pytest.approx(exact["loaded"] / 2, rel=0.01)
    for name in ("NNCF PTQ", "ORT static, min-max", "8/8/8"):
        assert points[name]["shipped"] < 0.3 * exact["shipped"], "weights are stored as bytes"
        assert points[name]["loaded"] < points[name]["file"]
    assert [name for name, point in points.items() if point["group"] == "front"] == [
        name for name in study.front["point"] if name != "float"
    ]
    assert points["6/6/8"]["shipped"] == next(record.values["size"] for record in study.records() if record.name == "6/6/8")
    assert figures["dominating_rivals"] == len(found["dominating"]) <= len(rivals)
    assert set(found["dominated"]) <= rivals
    assert figures["int8_speedup_low"] <= figures["int8_speedup"] <= figures["int8_speedup_high"]


def test_a_rival_that_cannot_be_built_is_named_with_its_error(
    study: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(given: object, folder: Path) -> File:
        raise RuntimeError("no such operator\nat a.cpp:1")

    monkeypatch.setattr(deploy, "RIVALS", {"float32": RIVALS["float32"], "another": Rival(fail)})
    run(monkeypatch, str(study.folder.absolute()), "--rounds", "1")
    lines = capsys.readouterr().out.splitlines()
    assert "not here: another: RuntimeError: no such operator" in lines
    assert "of 1 images the study's trials were judged on 1" in lines
    assert sum("of 2 rivals dominate a point of the front" in line for line in lines) == 2
    assert {"rivals:", "autoq's front:"} <= {*lines}


def test_a_study_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, "nothing-of-that-name")
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: study 'studies/nothing-of-that-name': there is no such study")


def test_without_nncf_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['nncf'] = None; from benchmarks import deploy"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert (found.returncode, found.stderr.count("\n")) == (2, 1)
    assert found.stderr.startswith("error: nncf is not installed; type pip install")


def point(psnr: float, shipped: int, ms: float, loaded: int = 1000) -> Point:
    """A file of so many dB, bytes and milliseconds."""
    return Point("", "rival", File(b"", loaded, loaded), shipped, {"psnr": psnr}, [ms])


@pytest.mark.parametrize(
    ("one", "dominates"),
    [
        (point(30.0, 1000, 10.0), False),
        (point(30.019, 992, 9.6), False),
        (point(30.03, 1000, 10.0), True),
        (point(30.0, 985, 10.0), True),
        (point(30.0, 1000, 9.4), True),
        (point(29.985, 500, 10.4), True),
        (point(29.97, 500, 5.0), False),
        (point(31.0, 1015, 5.0), False),
        (point(31.0, 500, 10.6), False),
    ],
    ids=["equal", "within the margins", "dB", "bytes", "ms", "a little worse in two", "fewer dB", "more bytes", "slower"],
)
def test_what_dominates(one: Point, dominates: bool) -> None:
    assert one.dominates(point(30.0, 1000, 10.0), "shipped") is dominates


@pytest.mark.parametrize(
    ("rival", "usual", "runs_in"),
    [
        ("NNCF PTQ", "openvino-cpu", "openvino-cpu-bf16"),
        ("float32", "openvino-cpu", "openvino-cpu"),
        ("ORT static, entropy", "onnxruntime-cpu", "onnxruntime-cpu"),
    ],
)
def test_rivals_run_in_the_precision_of_the_study(rival: str, usual: str, runs_in: str) -> None:
    assert run_in(rival, usual, "openvino-cpu-bf16") == runs_in


def test_points_that_others_of_the_front_dominate_are_said_to_be() -> None:
    """On the images of the search the slow point was a little better."""
    named = {
        "rival": ("rival", point(31.33, 1588, 42.0)),
        "quick": ("front", point(31.34, 1564, 25.0)),
        "slow": ("front", point(31.31, 1580, 46.0)),
        "small": ("front", point(31.20, 880, 25.0)),
    }
    points = [dataclasses.replace(each, name=name, group=group) for name, (group, each) in named.items()]
    found = Found(points, {}, [100.0], "", 5, 0)
    assert (found.dominating("shipped"), found.standing("shipped")) == ({"rival": ["slow"]}, {})
    assert found.dominated("shipped") == {"rival": ["quick"]}
    assert "  rival dominates slow (as another of the front does)" in verdict(found)
    alone = Found([each for each in points if each.name != "quick"], {}, [100.0], "", 5, 0)
    assert alone.standing("shipped") == {"rival": ["slow"]}
    assert "  rival dominates slow" in verdict(alone)


def test_the_same_by_what_is_loaded() -> None:
    packed, plain = point(30.0, 500, 10.0, loaded=1050), point(30.0, 1000, 10.0)
    assert packed.dominates(plain, "shipped")
    assert not plain.dominates(packed, "shipped")
    assert plain.dominates(packed, "loaded")
