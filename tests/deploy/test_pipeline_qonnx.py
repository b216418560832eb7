"""A point of a study for the target `bits` as a QONNX file, by the command."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import PIL.Image
import pytest

from autoq.cli import main
from autoq.config.policy import uniform
from autoq.config.spec import StudySpec, TrialSpec
from autoq.config.structure import Structure
from autoq.study.study import Study
from autoq.trial.context import input_hashes
from autoq.trial.run import run_trial
from autoq.tuning.options import search_space
from tests.conftest import small_image
from tests.contexts import latency_pass


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of the bundled XLSR with one policy, trained for one step."""
    folder = tmp_path_factory.mktemp("studies")
    trial = TrialSpec(
        model="xlsr",
        scale=3,
        target="bits",
        steps=1,
        batch=2,
        patches=2,
        eval_data=small_image(folder / "images", 3, 72),
        test_data=small_image(folder / "test", 4, 72),
    )
    space = search_space(trial)
    spec = StudySpec(trial=trial, space=space.to_dict(), objectives=("size", "bops", "psnr"), inputs=input_hashes(trial))
    study = Study.create(folder / "study", spec, {"command": "", "python": "", "machine": "a", "versions": {"torch": "2"}})
    latency = latency_pass(study)
    table = latency.measure()
    for name in ("4/4/8", "12/12/16"):
        policy = uniform(name, space.facts.stages, "lsq", "minmax", space.facts.formats)
        study.add_baseline(name, policy, run_trial(latency.context, policy, table, latency.graph), Structure())
    study.close()
    return folder / "study"


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["autoq", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize("name", ["4/4/8", "12/12/16"])
def test_a_point_runs_in_the_executor_as_expected(
    finished: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("export", str(finished), "--pick", name, "--format", "qonnx", "-o", str(tmp_path / "out"), "--json")
    assert command(monkeypatch, *words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["agreement_db"] >= 50
    assert found["found"]["psnr"] == pytest.approx(found["expected"]["psnr"], abs=0.05)
    for size in ("size", "size_runtime"):
        assert found["found"][size] == found["expected"][size]
    assert "latency" not in found["found"]
    assert found["faster_than_float"] is None
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.onnx", "policy.json", "README.md"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "--target bits" in card
    assert "atency" not in card.partition("## Verification")[2]
    model = onnx.load(tmp_path / "out" / "model.onnx")
    assert {node.domain for node in model.graph.node} == {"", "qonnx.custom_op.general"}
    image, large = small_image(tmp_path / "image", 4, 24) / "4.png", tmp_path / "large.png"
    more = ("upscale", str(tmp_path / "out" / "model.onnx"), str(image), str(large), "--target", "bits", "--quiet")
    assert command(monkeypatch, *more) == 0, "as the card says"
    with PIL.Image.open(large) as picture:
        assert picture.size == (72, 72)


def test_other_formats_and_a_missing_executor_are_refused_in_one_line(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("export", str(finished), "--pick", "4/4/8", "-o", str(tmp_path / "out"), "--format")
    for format in ("onnx", "packed", "openvino"):
        assert command(monkeypatch, *words, format) == 2
        assert "stores integers of at most 8 bits, target 'bits' has wider ones; type --format qonnx" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert command(monkeypatch, *words, "qonnx") == 2
    assert "qonnx, which is not installed; type `pip install 'autoq[qonnx]'`" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
