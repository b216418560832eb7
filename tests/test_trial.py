import dataclasses
from pathlib import Path

import pytest
import torch

from autoq import qat, trial
from autoq.errors import DataError
from autoq.export.onnx import Graph, export_graph, payload_bytes, write_qdq
from autoq.models import model_info
from autoq.objectives.latency import entries, structure_key
from autoq.objectives.latency_table import LatencyTable
from autoq.policy import uniform
from autoq.quantize import place, quantize
from autoq.spec import TrialSpec
from autoq.workbench import Workbench, prepare

STAGES = model_info("srresnet").stages
POLICIES = {bits: uniform(bits, STAGES, "lsq", "mse") for bits in ("32/32/32", "8/8/8", "4/4/8")}


@pytest.fixture(scope="module")
def spec(tiny_weights: Path) -> TrialSpec:
    return TrialSpec(model="srresnet", scale=2, weights=tiny_weights, steps=3, batch=2, patches=4)


@pytest.fixture(scope="module")
def graph(spec: TrialSpec) -> Graph:
    return export_graph(prepare(spec).traced)


@pytest.fixture(scope="module")
def latency(spec: TrialSpec) -> LatencyTable:
    bench = prepare(spec)
    keys = [
        structure_key(bench.traced, place(bench.traced, policy, bench.execution), bench.execution) for policy in POLICIES.values()
    ]
    samples = {key: ("", [float(number)]) for number, key in enumerate(dict.fromkeys(keys), 1)}
    return LatencyTable(
        model="srresnet", target="openvino-cpu", runtime="", frame=(96, 96), threads=1, machine="", entries=entries(samples)
    )


def test_a_trial_repeats_exactly_whatever_ran_before(spec: TrialSpec, graph: Graph, latency: LatencyTable) -> None:
    first = trial.run_trial(spec, POLICIES["8/8/8"], latency, graph)
    trial.run_trial(spec, POLICIES["4/4/8"], latency, graph)
    again = trial.run_trial(spec, POLICIES["8/8/8"], latency, graph)
    assert first.state == "complete"
    assert first.values == again.values
    assert first.steps == 3


def test_float_is_the_reference(spec: TrialSpec, graph: Graph, latency: LatencyTable) -> None:
    result = trial.run_trial(spec, POLICIES["32/32/32"], latency, graph)
    assert result.values["psnr_to_float"] == trial.PSNR_CEILING
    assert result.steps == 0
    assert {"size", "size_runtime", "latency", "psnr", "ssim"} <= result.values.keys()


def test_sizes_are_those_of_the_files(spec: TrialSpec, graph: Graph, latency: LatencyTable) -> None:
    bench = prepare(spec)
    result = trial.run_trial(spec, POLICIES["4/4/8"], latency, graph)
    network = quantize(bench.traced, POLICIES["4/4/8"], bench.statistics, bench.execution)
    assert result.values["size_runtime"] == payload_bytes(write_qdq(graph, network))
    assert result.values["size"] < result.values["size_runtime"]


def test_training_brings_the_output_closer_to_the_float_network(spec: TrialSpec) -> None:
    longer = spec.model_copy(update={"steps": 40, "patches": 80})
    bench = prepare(longer)
    network = quantize(bench.traced, POLICIES["4/4/8"], bench.statistics, bench.execution)
    before = trial.evaluate(bench, trial.as_executed(network))
    qat.Training(bench, network).advance(40)
    assert trial.evaluate(bench, trial.as_executed(network))["psnr_to_float"] > before["psnr_to_float"] + 0.3


def test_divergence_is_a_failed_trial_with_a_reason(
    spec: TrialSpec, graph: Graph, latency: LatencyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = prepare(spec)
    poisoned = dataclasses.replace(bench, teacher=torch.full_like(bench.teacher, float("nan")))
    monkeypatch.setattr(trial, "prepare", lambda _: poisoned)
    result = trial.run_trial(spec, POLICIES["8/8/8"], latency, graph)
    assert result.state == "failed"
    assert result.reason == "training diverged: the loss is nan at step 0 of 3"
    assert result.values == {}


def test_bfloat16_training_works_where_it_is_asked_for(spec: TrialSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qat, "native_bfloat16", lambda device: True)
    bench = prepare(spec)
    training = qat.Training(bench, quantize(bench.traced, POLICIES["8/8/8"], bench.statistics, bench.execution))
    training.advance(3)
    assert training.step == 3
    assert evaluate_psnr(bench, training) > 30


def evaluate_psnr(bench: Workbench, training: qat.Training) -> float:
    return trial.evaluate(bench, trial.as_executed(training.quantized))["psnr_to_float"]


def test_a_stored_training_goes_on_as_one_that_was_not_interrupted(spec: TrialSpec, tmp_path: Path) -> None:
    bench = prepare(spec)

    def fresh() -> qat.Training:
        return qat.Training(bench, quantize(bench.traced, POLICIES["4/4/8"], bench.statistics, bench.execution))

    whole, first, second = fresh(), fresh(), fresh()
    whole.advance(3)
    first.advance(1)
    torch.save(first.state(), tmp_path / "state.pt")
    second.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    second.advance(3)
    assert second.step == 3
    for name, value in whole.module.state_dict().items():
        assert torch.equal(value, second.module.state_dict()[name]), name


def test_training_on_an_evaluation_image_is_refused(spec: TrialSpec, shared: Path) -> None:
    folder = shared / "test" / "Set5"
    with pytest.raises(DataError, match="a trial must not be judged on what it was trained on"):
        prepare(spec.model_copy(update={"data": folder, "eval_data": folder}))


def test_a_trial_on_a_gpu_repeats_and_agrees_with_the_processor(
    gpu: str, spec: TrialSpec, graph: Graph, latency: LatencyTable
) -> None:
    here = trial.run_trial(spec, POLICIES["8/8/8"], latency, graph)
    there = spec.model_copy(update={"device": gpu})
    first = trial.run_trial(there, POLICIES["8/8/8"], latency, graph)
    again = trial.run_trial(there, POLICIES["8/8/8"], latency, graph)
    assert first.values == again.values
    assert first.values["psnr"] == pytest.approx(here.values["psnr"], abs=0.05)


def test_a_target_without_a_latency_has_none(spec: TrialSpec, latency: LatencyTable) -> None:
    there = spec.model_copy(update={"target": "bits"})
    table = latency.model_copy(update={"target": "bits", "entries": {}})
    bench = prepare(there)
    values = trial.run_trial(there, POLICIES["4/4/8"], table, export_graph(bench.traced)).values
    assert not {"latency", "score"} & values.keys()
    weights = sum(parameter.numel() for parameter in bench.traced.module.parameters())
    assert values["size_runtime"] > 4 * weights > 4 * values["size"], "QONNX keeps float32 tensors"
