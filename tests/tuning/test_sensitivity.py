"""The stages of a tiny network one at a time, against brute force."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from autoq.cli import main
from autoq.config.policy import Policy, StageQuant, uniform
from autoq.config.space import SearchSpace
from autoq.config.space_file import parse_space
from autoq.config.spec import Analysis, Answer, Answers, Probe, Question, StudySpec, TrialSpec
from autoq.costs.latency import structure
from autoq.costs.latency.measure import entries
from autoq.costs.latency.table import LatencyTable
from autoq.export.onnx import Graph, export_graph, payload_bytes
from autoq.graph.inference import upscale
from autoq.graph.trace import roles_by_stage
from autoq.images.data import to_tensor
from autoq.study.study import Study, space_facts
from autoq.targets import load_target
from autoq.trial.context import TrialContext, input_hashes, prepare, runtime_model
from autoq.tuning import initial_trials
from autoq.tuning.initial_trials import probe, propose_initial_trials
from autoq.tuning.sensitivity import agreement, alone, analyse
from tests.cli.test_cli import run
from tests.conftest import made_up, small_image

SPACE = {
    "roles": {
        "weight": {"bits": [3, 8], "quantizer": ["minmax", "lsq"]},
        "activation": {"bits": [4, 8], "quantizer": "lsq"},
        "skip": {"bits": 8},
    }
}


@pytest.fixture(scope="module")
def spec(tiny_weights: Path) -> TrialSpec:
    return TrialSpec(model="srresnet", scale=2, weights=tiny_weights, steps=0, batch=2, patches=4, eval_crops=8)


@pytest.fixture(scope="module")
def context(spec: TrialSpec) -> TrialContext:
    return prepare(spec)


@pytest.fixture(scope="module")
def graph(context: TrialContext) -> Graph:
    return export_graph(context.traced)


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return parse_space(SPACE, space_facts("srresnet", "openvino-cpu"), "test")


@pytest.fixture(scope="module")
def table(context: TrialContext, space: SearchSpace) -> LatencyTable:
    """Milliseconds that grow with the number of stages in float."""
    float_policy = Policy(tuple((stage, StageQuant()) for stage in space.choices))
    structures = structure.structures(context.traced, space, context.execution, [float_policy]).policies
    found = {key: structure.structure_of(context.plan_for(policy)) for key, policy in structures.items()}
    samples = {key: (each, [10.0 + len(each.stages) - len(each.integer)]) for key, each in found.items()}
    return LatencyTable(
        model="srresnet", target="openvino-cpu", runtime="", frame=(32, 24), threads=1, machine="", entries=entries(samples)
    )


@pytest.fixture(scope="module")
def probes(context: TrialContext, graph: Graph, space: SearchSpace) -> tuple[Probe, ...]:
    return probe(context, graph, space)


def error(context: TrialContext, graph: Graph, policy: Policy) -> float:
    """Mean squared error of the written file's output to the float network's."""
    quantized = context.quantized(policy)
    run = load_target("openvino-cpu").load(runtime_model("openvino-cpu", graph, quantized).SerializeToString(), 1)
    errors = []
    for pair in context.pairs:
        expected = upscale(context.traced.module, pair.low, "cpu").clamp(0, 1).numpy()
        errors.append(np.mean((run(to_tensor(pair.low).numpy()).clip(0, 1) - expected) ** 2))
    return float(np.mean(errors))


def test_probes_look_at_a_few_images_spread_over_all(context: TrialContext, graph: Graph, space: SearchSpace) -> None:
    """What they find is what they find on these images alone."""
    many = dataclasses.replace(context, pairs=(*context.pairs, *context.pairs[::-1]) * initial_trials.PROBED_IMAGES)
    stride = len(many.pairs) // initial_trials.PROBED_IMAGES
    few = dataclasses.replace(context, pairs=many.pairs[::stride])
    assert len(few.pairs) == initial_trials.PROBED_IMAGES
    found = probe(many, graph, space)
    assert all(each.loss == pytest.approx(error(few, graph, Policy.from_dict(each.policy)), rel=1e-5) for each in found[::7])


def test_seeds_know_what_a_runtime_file_holds(context: TrialContext, graph: Graph, table: LatencyTable) -> None:
    """Of 4-bit weights the file has half a byte each, of 6-bit ones a whole one."""
    of = initial_trials._adding(context, ("size_runtime", "psnr"), table).of

    def both(bits: str) -> tuple[float, float]:
        stages = {layer.stage: roles_by_stage(context.traced.sites)[layer.stage] for layer in context.traced.layers}
        policy = uniform(",".join(f"{stage}={bits if stage == 'body' else '8/8/8'}" for stage in stages), stages)
        quantized = context.quantized(policy)
        return of(policy)[0], payload_bytes(runtime_model("openvino-cpu", graph, quantized))

    predicted, found = zip(*(both(bits) for bits in ("8/8/8", "6/8/8", "4/8/8")), strict=True)
    assert predicted[0] == predicted[1] > predicted[2]
    assert predicted[0] - predicted[2] == found[0] - found[2]


def test_the_ranking_is_that_of_a_brute_force_evaluation(
    context: TrialContext, graph: Graph, spec: TrialSpec, space: SearchSpace
) -> None:
    question = Question(widths=(3, 8), pairs=True, seeds=2, frame=(16, 16))
    phases: list[str] = []
    analysis = analyse(spec, space, question, phases.append)
    answers = Answers(answers=(Answer(question=question, analysis=analysis),))
    assert Answers.model_validate_json(answers.model_dump_json(by_alias=True)) == answers
    found = analysis.to_json()
    losses = {}
    for stage in space.choices:
        (narrow,) = [
            quant
            for quant in space.stage_quants(stage)
            if quant.weight.bits == 3 and quant.weight.quantizer == "lsq" and quant.activation.bits in (4, 32)
        ]
        everything = {role: dataclasses.replace(quant, bits=3) for role, quant in vars(narrow).items() if not quant.is_float}
        wide = {role: dataclasses.replace(quant, bits=8) for role, quant in everything.items()}
        parts = [error(context, graph, alone(space.choices, stage, StageQuant(**roles))) for roles in (everything, wide)]
        losses[stage] = np.mean(np.log10(parts))
    assert found["ranking"] == sorted(losses, key=losses.__getitem__, reverse=True)
    assert (found["most_sensitive"], found["least_sensitive"]) == (found["ranking"][0], found["ranking"][-1])
    groups = [tuple(entry["stages"]) for entry in found["entries"]]
    assert groups[:8:2] == [(stage,) for stage in found["ranking"]], "the most sensitive first"
    assert len(groups) == 2 * (4 + 6 + 4), "one, two and three stages at two widths"
    for entry in found["entries"]:
        assert entry["size_saved"] > 0
        assert entry["mse"] >= 0
    for stage in space.choices:
        narrow_entry, wide_entry = (entry for entry in found["entries"] if entry["stages"] == [stage])
        assert narrow_entry["mse"] > wide_entry["mse"]
        assert narrow_entry["size_saved"] > wide_entry["size_saved"]
    assert {(entry["stage"], entry["role"], entry["bits"]) for entry in found["roles"]} == {
        (stage, role, bits)
        for stage, roles in space.facts.stages.items()
        for role, bits in (("weight", 3), ("activation", 4))
        if role in roles
    }
    for over in ("images", "seeds"):
        assert -1 <= found["stability"][over]["low"] <= found["stability"][over]["high"] <= 1
    assert phases
    json.dumps(found)


def test_seeds_are_the_front_that_single_stages_predict(
    context: TrialContext, graph: Graph, space: SearchSpace, table: LatencyTable, probes: tuple[Probe, ...]
) -> None:
    found = propose_initial_trials(context, space, ("size", "latency", "psnr"), table, 6, probes)
    seeds = [Policy.from_dict(seed) for seed in found.initial_trials]
    assert len(seeds) == len(set(seeds)) == len(found.predicted) == 6
    for seed in seeds:
        space.parameters(seed)
    weights = [policy for policy in space.enumerate() if all(q.weight.quantizer == "lsq" for _, q in policy.stages)]
    measured = {probe.label: probe.loss for probe in found.probes}
    assert len(measured) == len(found.probes)
    one_stage = [policy for policy in weights if sum(quant.weight.bits == 3 for _, quant in policy.stages) == 1]
    assert one_stage
    actual = [error(context, graph, seed) for seed in seeds]
    assert spearmanr(found.predicted, actual).statistic > 0.7
    assert all(probe.seconds >= 0 and probe.size > 0 for probe in found.probes)


def test_seeds_like_an_earlier_study_come_first(
    context: TrialContext, space: SearchSpace, table: LatencyTable, probes: tuple[Probe, ...]
) -> None:
    earlier = list(space.enumerate())[5:9]
    found = propose_initial_trials(context, space, ("size", "psnr"), table, 6, probes, (), earlier)
    seeds = [Policy.from_dict(seed) for seed in found.initial_trials]
    assert seeds[:3] == earlier[:3]
    assert len(set(seeds)) == len(found.predicted) == 6
    plain = propose_initial_trials(context, space, ("size", "psnr"), table, 6, probes)
    assert found.initial_trials[3] in plain.initial_trials


def test_seeds_without_latency_and_with_operations(
    context: TrialContext, space: SearchSpace, table: LatencyTable, probes: tuple[Probe, ...]
) -> None:
    found = propose_initial_trials(context, space, ("bops", "psnr"), table, 3, probes)
    labels = [Policy.from_dict(seed).label for seed in found.initial_trials]
    assert len(labels) == 3
    assert any("4" in label for label in labels), "fewer bits of activations save operations"


def test_agreement_is_the_mean_rank_correlation() -> None:
    rows = np.array([[1.0, 2, 3, 4, 5, 6], [2.0, 4, 6, 8, 10, 12], [6.0, 5, 4, 3, 2, 1]])
    found = agreement(rows)
    assert found is not None
    assert found["spearman"] == pytest.approx((1 - 1 - 1) / 3, abs=1e-3)
    assert agreement(rows[:1]) is None
    same = agreement(rows[:2])
    assert same == {"spearman": 1.0, "low": 1.0, "high": 1.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--by", "stages"], "--by 'stages': expected one of stage, block, layer (did you mean 'stage'?)"),
        (["--metric", "psnrr"], "unknown metric 'psnrr' (did you mean 'psnr'?); type one of fidelity, niqe, pi, psnr, ssim"),
        (["--steps", "x"], "--steps 'x': expected a whole number from 0 to 1000000, for example --steps 24"),
        (["--frame", "96"], "--frame '96': expected WIDTHxHEIGHT, each from 16 to 8192 pixels, for example --frame 96x96"),
    ],
)
def test_bad_options(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, options: list[str], message: str) -> None:
    monkeypatch.setattr("sys.argv", ["autoq", "sensitivity", "--model", "srresnet", *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"autoq: {message}\n"


def test_layers_of_a_network_by_themselves(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_weights: Path, tmp_path: Path
) -> None:
    (tmp_path / "space.yaml").write_text(json.dumps(SPACE))
    options = ["--model", "srresnet", "--scale", "2", "--weights", str(tiny_weights), "--frame", "16x16", "--quiet"]
    options += ["--data", str(small_image(tmp_path / "train", 0))]
    options += ["--space", str(tmp_path / "space.yaml"), "--eval-data", str(small_image(tmp_path / "images", 1))]
    shown = {}
    for by, more in (("layer", ["--json", "--metric", "fidelity"]), ("block", [])):
        monkeypatch.setattr("sys.argv", ["autoq", "sensitivity", "--by", by, *options, *more])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        shown[by] = capsys.readouterr().out
    found = json.loads(shown["layer"])
    assert found["by"] == "layer"
    assert len(found["ranking"]) == 6, found["ranking"]
    assert found["float"]["fidelity"] >= 60
    changes = {bits: [each["change"] for each in found["entries"] if each["bits"] == bits] for bits in (3, 8)}
    assert max(changes[3]) < max(changes[8]) < 0
    rows = [line for line in shown["block"].splitlines() if line.rstrip().endswith(" ms")]
    assert len(rows) == 5, shown["block"]
    assert "most sensitive: " in shown["block"]
    assert "rank correlation" in shown["block"]


# ------------------------------------------------------------ of a study


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_weights: Path) -> Study:
    """A study of the tiny network in an own folder, without trials."""
    monkeypatch.chdir(tmp_path)
    trial = TrialSpec(model="srresnet", scale=2, weights=tiny_weights, seed=5)
    space = parse_space(SPACE, space_facts("srresnet", "openvino-cpu"), "test")
    inputs = input_hashes(trial)
    study_spec = StudySpec(
        trial=trial, space=space.to_dict(), objectives=("size", "psnr"), frame=(16, 16), latency_threads=1, inputs=inputs
    )
    environment = {"command": "autoq search", "python": "3", "machine": "m", "versions": {}}
    made = Study.create(Path("studies") / "mine", study_spec, environment)
    made.close()
    return made


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[TrialSpec, Question]]:
    """What `analyse` was called with; it answers with made-up numbers."""
    calls: list[tuple[TrialSpec, Question]] = []

    def counting(spec: TrialSpec, space: SearchSpace, question: Question, phase: Callable[[str], None]) -> Analysis:
        calls.append((spec, question))
        return made_up(question, tuple(space.choices))

    monkeypatch.setattr("autoq.tuning.sensitivity.analyse", counting)
    return calls


def test_what_a_study_was_asked_is_not_measured_again(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    study: Study,
    counted: list[tuple[TrialSpec, Question]],
    tiny_weights: Path,
) -> None:
    asked = ["sensitivity", "--study", "mine", "--json"]
    code, first, said = run(capsys, monkeypatch, *asked)
    assert code == 0
    assert "from studies/mine" not in said
    ((spec, question),) = counted
    assert (spec.model, spec.scale, spec.weights, spec.seed) == ("srresnet", 2, tiny_weights, 5)
    assert question == Question(widths=(3, 8), frame=(16, 16), threads=1)
    same = ["--model", "srresnet", "--scale", "2", "--seed", "5", "--frame", "16x16", "--weights", str(tiny_weights)]
    code, again, said = run(capsys, monkeypatch, *asked, *same)
    assert code == 0
    assert again == first
    assert said == "read from studies/mine/stages.json; remove the file to measure again\n"
    assert len(counted) == 1, "it was measured again"
    (kept,) = json.loads((study.folder / "stages.json").read_text())["answers"]
    assert kept["question"] == question.model_dump(mode="json")
    assert kept["analysis"] == json.loads(first)


def test_another_question_is_measured_and_stored_beside_the_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, study: Study, counted: list[tuple[TrialSpec, Question]]
) -> None:
    for options in ([], ["--metric", "ssim"], ["--metric", "ssim", "--steps", "2", "--pairs"], []):
        assert run(capsys, monkeypatch, "sensitivity", "--study", "mine", "--quiet", *options)[0] == 0
    assert [(question.metric, question.steps, question.pairs) for _, question in counted] == [
        ("psnr", 0, False),
        ("ssim", 0, False),
        ("ssim", 2, True),
    ]
    assert [answer.question for answer in study.answers()] == [question for _, question in counted]
    assert [answer.analysis.metric for answer in study.answers()] == ["psnr", "ssim", "ssim"]


def test_an_answer_that_cannot_be_stored_is_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, study: Study, counted: list[tuple[TrialSpec, Question]]
) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("autoq.study.folder.atomic_write_text", full)
    code, out, said = run(capsys, monkeypatch, "sensitivity", "--study", "mine")
    assert code == 0
    assert "most sensitive: " in out
    assert "studies/mine/stages.json: cannot be written (No space left on device)" in said
    assert study.answers() == ()


def test_weights_that_changed_since_the_study(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, study: Study, counted: list[tuple[TrialSpec, Question]]
) -> None:
    file = study.folder / "study.yaml"
    file.write_text(file.read_text().replace(study.spec.inputs["weights"], "another"))
    message = "study 'mine': --weights has changed since the study began; restore it, or give another --study"
    assert run(capsys, monkeypatch, "sensitivity", "--study", "mine") == (2, "", f"autoq: {message}\n")
    assert counted == []


def test_a_metric_whose_files_are_missing_is_asked_of_what_is_stored(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, study: Study, counted: list[tuple[TrialSpec, Question]]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(study.folder / "no-metrics"))
    code, _, said = run(capsys, monkeypatch, "sensitivity", "--study", "mine", "--metric", "niqe")
    assert code == 2
    assert "niqe" in said
    question = Question(metric="niqe", widths=(3, 8), frame=(16, 16))
    study.add_answer(question, made_up(question, tuple(study.space.choices)))
    assert run(capsys, monkeypatch, "sensitivity", "--study", "mine", "--metric", "niqe")[0] == 0
    assert counted == []
