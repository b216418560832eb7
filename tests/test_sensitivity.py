"""The stages of a tiny network one at a time, against brute force."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from autoq.cli import main
from autoq.executed import as_executed
from autoq.objectives import latency as latencies
from autoq.objectives.latency import LatencyTable, table_document
from autoq.policy import Policy, StageQuant
from autoq.quantize import place, quantize
from autoq.sensitivity import Question, agreement, alone, analyse, find_seeds
from autoq.space import SearchSpace, parse_space
from autoq.spec import TrialSpec
from autoq.study import space_facts
from autoq.workbench import Workbench, prepare, upscale

SPACE = {
    "roles": {
        "weight": {"bits": [3, 8], "quantizer": ["minmax", "lsq"]},
        "activation": {"bits": [4, 8], "quantizer": "lsq"},
        "skip": {"bits": 8},
    }
}


@pytest.fixture(scope="module")
def spec(tiny_weights: Path) -> TrialSpec:
    return TrialSpec(model="srresnet", scale=2, weights=tiny_weights, steps=0, batch=2, patches=4)


@pytest.fixture(scope="module")
def bench(spec: TrialSpec) -> Workbench:
    return prepare(spec)


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return parse_space(SPACE, space_facts("srresnet", "openvino-cpu"), "test")


@pytest.fixture(scope="module")
def table(bench: Workbench, space: SearchSpace) -> LatencyTable:
    """Milliseconds that grow with the number of stages in float."""
    float_policy = Policy(tuple((stage, StageQuant()) for stage in space.choices))
    structures = latencies.structures(bench.traced, space, bench.execution, [float_policy]).policies
    words = {
        key: latencies.describe(bench.traced, place(bench.traced, policy, bench.execution), bench.execution)
        for key, policy in structures.items()
    }
    samples = {key: (text, [10.0 + text.count("float")]) for key, text in words.items()}
    return table_document(
        model="srresnet", target="openvino-cpu", runtime="", frame=(32, 24), threads=1, machine="", samples=samples
    )


def error(bench: Workbench, policy: Policy) -> float:
    """Mean squared error of the output to the float network's."""
    module = as_executed(quantize(bench.traced, policy, bench.statistics, bench.execution))
    errors = []
    for pair in bench.pairs:
        a, b = (upscale(network, pair.low, "cpu").clamp(0, 1) for network in (module, bench.traced.module))
        errors.append(float(torch.mean((a - b) ** 2)))
    return float(np.mean(errors))


def test_the_ranking_is_that_of_a_brute_force_evaluation(bench: Workbench, spec: TrialSpec, space: SearchSpace) -> None:
    question = Question(widths=(3, 8), pairs=True, seeds=2, frame=(16, 16))
    phases: list[str] = []
    found = analyse(spec, space, question, phases.append)
    losses = {}
    for stage in space.choices:
        (narrow,) = [
            quant
            for quant in space.stage_quants(stage)
            if quant.weight.bits == 3 and quant.weight.quantizer == "lsq" and quant.activation.bits in (4, 32)
        ]
        everything = {role: dataclasses.replace(quant, bits=3) for role, quant in vars(narrow).items() if not quant.is_float}
        wide = {role: dataclasses.replace(quant, bits=8) for role, quant in everything.items()}
        parts = [error(bench, alone(space.choices, stage, StageQuant(**roles))) for roles in (everything, wide)]
        losses[stage] = np.mean(np.log10(parts))
    assert found["ranking"] == sorted(losses, key=losses.__getitem__, reverse=True)
    assert (found["most_sensitive"], found["least_sensitive"]) == (found["ranking"][0], found["ranking"][-1])
    groups = [tuple(entry["stages"]) for entry in found["entries"]]
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


def test_seeds_are_the_front_that_single_stages_predict(bench: Workbench, space: SearchSpace, table: LatencyTable) -> None:
    found = find_seeds(bench, space, ("size", "latency", "psnr"), table, 6)
    seeds = [Policy.from_dict(seed) for seed in found.seeds]
    assert len(seeds) == len(set(seeds)) == len(found.predicted) == 6
    for seed in seeds:
        space.parameters(seed)
    weights = [policy for policy in space.enumerate() if all(q.weight.quantizer == "lsq" for _, q in policy.stages)]
    measured = {probe.label: probe.loss for probe in found.probes}
    assert len(measured) == len(found.probes)
    one_stage = [policy for policy in weights if sum(quant.weight.bits == 3 for _, quant in policy.stages) == 1]
    assert one_stage
    actual = [error(bench, seed) for seed in seeds]
    assert spearmanr(found.predicted, actual).statistic > 0.7
    assert all(probe.seconds >= 0 and probe.size > 0 for probe in found.probes)


def test_seeds_like_an_earlier_study_come_first(bench: Workbench, space: SearchSpace, table: LatencyTable) -> None:
    earlier = list(space.enumerate())[5:9]
    found = find_seeds(bench, space, ("size", "psnr"), table, 6, (), earlier)
    seeds = [Policy.from_dict(seed) for seed in found.seeds]
    assert seeds[:3] == earlier[:3]
    assert len(set(seeds)) == len(found.predicted) == 6
    plain = find_seeds(bench, space, ("size", "psnr"), table, 6)
    assert found.seeds[3] in plain.seeds


def test_seeds_without_latency_and_with_operations(bench: Workbench, space: SearchSpace, table: LatencyTable) -> None:
    found = find_seeds(bench, space, ("bops", "psnr"), table, 3)
    labels = [Policy.from_dict(seed).label for seed in found.seeds]
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
        (["--by", "stages"], "unknown granularity 'stages' (known: block, layer, stage). Did you mean 'stage'?"),
        (["--metric", "psnrr"], "unknown metric 'psnrr' (known: niqe, pi, psnr, ssim). Did you mean 'psnr'?"),
        (["--steps", "x"], "--steps 'x': expected a whole number from 0 to 1000000; type --steps 16"),
        (["--frame", "96"], "frame '96': expected WIDTHxHEIGHT, each 16 to 8192 pixels, for example 96x96"),
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
    options = ["--model", "srresnet", "--scale", "2", "--weights", str(tiny_weights), "--frame", "16x16", "--json", "--quiet"]
    options += ["--space", str(tmp_path / "space.yaml")]
    for by, expected in (("layer", 6), ("block", 5)):
        monkeypatch.setattr("sys.argv", ["autoq", "sensitivity", "--by", by, *options])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        found = json.loads(capsys.readouterr().out)
        assert found["by"] == by
        assert len(found["ranking"]) == expected, found["ranking"]
    monkeypatch.setattr("sys.argv", ["autoq", "sensitivity", *[option for option in options if option != "--json"]])
    with pytest.raises(SystemExit):
        main()
    out = capsys.readouterr().out
    assert "most sensitive: " in out
    assert "rank correlation" in out
