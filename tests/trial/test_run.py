import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

from autoq.config.policy import uniform
from autoq.config.spec import TrialSpec
from autoq.config.structure import Structure
from autoq.costs.latency.measure import entries
from autoq.costs.latency.structure import structure_key
from autoq.costs.latency.table import LatencyTable
from autoq.errors import DataError, TrialFailed
from autoq.export.onnx import Graph, export_graph, payload_bytes, write_qdq
from autoq.images.data import make_pair, read_folder
from autoq.metrics.quality import PSNR_CEILING
from autoq.networks import model_info, staged_model
from autoq.targets import Runner, load_target
from autoq.training import qat
from autoq.trial import run as trial
from autoq.trial.context import TrialContext, runtime_model, simulated
from tests.conftest import decibels, small_image
from tests.conftest import simulated as in_training
from tests.contexts import prepared

STAGES = model_info("srresnet").stages
POLICIES = {bits: uniform(bits, STAGES, "lsq", "mse") for bits in ("32/32/32", "8/8/8", "4/4/8")}


@pytest.fixture(scope="module")
def spec(tiny_weights: Path) -> TrialSpec:
    return TrialSpec(model="srresnet", scale=2, weights=tiny_weights, steps=3, batch=2, patches=4, eval_crops=4)


@pytest.fixture(scope="module")
def graph(spec: TrialSpec) -> Graph:
    return export_graph(prepared(spec).traced)


@pytest.fixture(scope="module")
def latency(spec: TrialSpec) -> LatencyTable:
    context = prepared(spec)
    keys = [structure_key(context.plan_for(policy)) for policy in POLICIES.values()]
    samples = {key: (Structure(), [float(number)]) for number, key in enumerate(dict.fromkeys(keys), 1)}
    return LatencyTable(
        model="srresnet", target="openvino-cpu", runtime="", frame=(96, 96), threads=1, machine="", entries=entries(samples)
    )


def test_trials_without_originals_are_judged_by_fidelity(
    spec: TrialSpec, graph: Graph, latency: LatencyTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same pixels as inputs, of which nothing is reduced: the file's outputs beside the float network's."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = small_image(tmp_path / "images", 4, side=40)
    given = spec.model_copy(update={"images": "lr", "eval_data": folder, "test_data": small_image(tmp_path / "test", 5, side=40)})
    found = trial.run_trial(prepared(given), POLICIES["8/8/8"], latency, graph)
    assert found.state == "complete"
    assert not {"psnr", "ssim"} & found.values.keys()
    assert set(found.held_out) == {"fidelity"}
    low = read_folder(folder)[0].pixels
    context = prepared(given)
    assert [(pair.high, pair.low.shape) for pair in context.pairs] == [(None, low.shape)]
    quantized = trial.trained(context, POLICIES["8/8/8"], given.steps)
    run = load_target(given.target).load(runtime_model(given.target, graph, quantized).SerializeToString(), 1)
    exact = context.float_outputs[0]
    assert exact.shape == (80, 80, 3)
    output = np.rint(np.clip(run(np.float32(low.transpose(2, 0, 1)[None] / 255))[0], 0, 1) * 255).transpose(1, 2, 0)
    assert found.values["fidelity"] == pytest.approx(peak_signal_noise_ratio(exact, output.astype(np.uint8)), abs=0.05)


def test_a_trial_repeats_exactly_whatever_ran_before(spec: TrialSpec, graph: Graph, latency: LatencyTable) -> None:
    first = trial.run_trial(prepared(spec), POLICIES["8/8/8"], latency, graph)
    trial.run_trial(prepared(spec), POLICIES["4/4/8"], latency, graph)
    again = trial.run_trial(prepared(spec), POLICIES["8/8/8"], latency, graph)
    assert first.state == "complete"
    assert first.values == again.values
    assert first.steps == 3


def test_float_is_the_reference(spec: TrialSpec, graph: Graph, latency: LatencyTable) -> None:
    result = trial.run_trial(prepared(spec), POLICIES["32/32/32"], latency, graph)
    assert result.values["fidelity"] >= 60, "rounding to 8 bits apart the file gives the float network's images"
    assert result.values["simulation_agreement_db"] >= 90
    assert result.steps == 0
    assert {"size", "size_runtime", "latency", "psnr", "ssim"} <= result.values.keys()
    assert result.held_out.keys() >= {"psnr", "ssim", "fidelity"}, "a network without training is a fully trained one"


def test_sizes_are_those_of_the_files(spec: TrialSpec, graph: Graph, latency: LatencyTable) -> None:
    context = prepared(spec)
    result = trial.run_trial(prepared(spec), POLICIES["4/4/8"], latency, graph)
    network = context.quantized(POLICIES["4/4/8"])
    assert result.values["size_runtime"] == payload_bytes(write_qdq(graph, network))
    assert result.values["size"] < result.values["size_runtime"]


def small(spec: TrialSpec, folder: Path, **changes: object) -> TrialSpec:
    """The same trials on three folders of one small image each."""
    names = ("data", "eval_data", "test_data")
    images = {name: small_image(folder / name, seed) for seed, name in enumerate(names, 1)}
    return spec.model_copy(update={**images, **changes})


def judged_by_hand(spec: TrialSpec, folder: Path, run: Runner) -> dict[str, float]:
    """PSNR and fidelity by another library, with luma by its formula, over the images of a folder."""
    network = staged_model(spec.model, spec.scale, spec.weights, {})[0]
    found = []
    for image in read_folder(folder):
        pair = make_pair(image, spec.scale)
        low = torch.from_numpy(pair.low).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            outputs = (run(low.numpy())[0], network(low)[0].numpy())
        output, exact = (np.rint(values.clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0) for values in outputs)
        inner = slice(spec.scale, -spec.scale)
        luma = [pixels[inner, inner].astype(float) @ [65.481, 128.553, 24.966] / 255 for pixels in (output, pair.high)]
        found.append((peak_signal_noise_ratio(*luma, data_range=255), peak_signal_noise_ratio(exact, output)))
    return dict(zip(("psnr", "fidelity"), np.mean(found, axis=0).tolist(), strict=True))


@pytest.mark.parametrize("target", ["openvino-cpu", "onnxruntime-cpu"])
@pytest.mark.parametrize("bits", ["8/8/8", "4/4/8"])
def test_values_are_those_of_the_written_file(
    spec: TrialSpec, graph: Graph, latency: LatencyTable, tmp_path: Path, target: str, bits: str
) -> None:
    """Trained again, written to disk, loaded by the runtime, and judged by another library."""
    there = small(spec, tmp_path, target=target)
    result = trial.run_trial(prepared(there), POLICIES[bits], latency.model_copy(update={"target": target, "entries": {}}), graph)
    quantized = trial.trained(prepared(there), POLICIES[bits], there.steps)
    onnx.save(runtime_model(target, graph, quantized), tmp_path / "model.onnx")
    run = load_target(target).load(tmp_path / "model.onnx", 1)
    for values, folder in ((result.values, there.eval_data), (result.held_out, there.test_data)):
        assert folder is not None
        for name, value in judged_by_hand(there, folder, run).items():
            assert values[name] == pytest.approx(value, abs=1e-6), name
    pair = make_pair(read_folder(tmp_path / "eval_data")[0], 2)
    low = torch.from_numpy(pair.low).permute(2, 0, 1)[None] / 255
    agreement = decibels(run(low.numpy()).clip(0, 1), in_training(quantized, low).clip(0, 1))
    assert result.values["simulation_agreement_db"] == pytest.approx(min(agreement, 100), abs=0.1)
    assert agreement >= 40


def test_where_no_runtime_executes_the_file_the_network_in_torch_is_judged(
    spec: TrialSpec, graph: Graph, latency: LatencyTable, tmp_path: Path
) -> None:
    there = small(spec, tmp_path, target="bits")
    table = latency.model_copy(update={"target": "bits", "entries": {}})
    result = trial.run_trial(prepared(there), POLICIES["4/4/8"], table, graph)
    quantized = trial.trained(prepared(there), POLICIES["4/4/8"], there.steps)
    expected = judged_by_hand(there, tmp_path / "eval_data", lambda low: in_training(quantized, torch.from_numpy(low)))
    for name, value in expected.items():
        assert result.values[name] == pytest.approx(value, abs=1e-6)
    assert result.values["simulation_agreement_db"] == PSNR_CEILING, "it is held against itself"


def test_only_fully_trained_trials_see_held_out_images(
    spec: TrialSpec, graph: Graph, latency: LatencyTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = small(spec, tmp_path)
    looked: list[TrialContext] = []
    held_out = TrialContext.held_out

    def look(context: TrialContext) -> TrialContext:
        looked.append(context)
        return held_out(context)

    monkeypatch.setattr(TrialContext, "held_out", look)
    pruned = trial.run_trial(prepared(there), POLICIES["8/8/8"], latency, graph, until=1)
    assert (pruned.state, pruned.steps, pruned.held_out, looked) == ("complete", 1, {}, [])
    full = trial.run_trial(prepared(there), POLICIES["8/8/8"], latency, graph, until=3)
    assert full == trial.run_trial(prepared(there), POLICIES["8/8/8"], latency, graph).model_copy(update={"seconds": full.seconds})
    assert {"psnr", "ssim", "fidelity"} <= full.held_out.keys() <= full.values.keys()
    assert full.held_out["psnr"] != full.values["psnr"]
    exact = trial.run_trial(prepared(there), POLICIES["32/32/32"], latency, graph, until=1)
    assert exact.held_out.keys() == full.held_out.keys(), "the float network needs no step"


def test_a_replication_is_the_trial_of_another_seed(spec: TrialSpec, graph: Graph, latency: LatencyTable, tmp_path: Path) -> None:
    there = small(spec, tmp_path)
    found = trial.replicate(prepared(there).with_seed(5), POLICIES["4/4/8"], graph)
    other = trial.run_trial(prepared(there.model_copy(update={"seed": 5})), POLICIES["4/4/8"], latency, graph)
    assert (found.policy, found.seed) == (POLICIES["4/4/8"].hash, 5)
    assert found.result.values == {name: other.values[name] for name in found.result.values}
    assert found.result.held_out == other.held_out
    assert found.result.values["psnr"] != trial.run_trial(prepared(there), POLICIES["4/4/8"], latency, graph).values["psnr"]


def test_an_output_that_is_not_finite_is_a_failed_trial(spec: TrialSpec, tmp_path: Path) -> None:
    context = prepared(small(spec, tmp_path))
    with pytest.raises(TrialFailed, match="the output for image '2' is not finite"):
        trial.evaluate(context, lambda low: np.full((1, 3, 96, 96), np.nan, np.float32))


def test_training_brings_the_output_closer_to_the_float_network(spec: TrialSpec) -> None:
    longer = spec.model_copy(update={"steps": 40, "patches": 80})
    context = prepared(longer)
    network = context.quantized(POLICIES["4/4/8"])
    before = trial.evaluate(context, simulated(context, network))
    qat.Training(context, network).advance(40)
    assert trial.evaluate(context, simulated(context, network))["fidelity"] > before["fidelity"] + 0.3


def test_divergence_is_a_failed_trial_with_a_reason(spec: TrialSpec, graph: Graph, latency: LatencyTable) -> None:
    context = prepared(spec)
    poisoned = dataclasses.replace(context, teacher=torch.full_like(context.teacher, float("nan")))
    result = trial.run_trial(poisoned, POLICIES["8/8/8"], latency, graph)
    assert result.state == "failed"
    assert result.reason == "training diverged: the loss is nan at step 0 of 3"
    assert result.values == {}


def test_bfloat16_training_works_where_it_is_asked_for(spec: TrialSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qat, "native_bfloat16", lambda device: True)
    context = prepared(spec)
    training = qat.Training(context, context.quantized(POLICIES["8/8/8"]))
    training.advance(3)
    assert training.step == 3
    assert trial.evaluate(context, simulated(context, training.quantized))["fidelity"] > 30


def test_a_stored_training_goes_on_as_one_that_was_not_interrupted(spec: TrialSpec, tmp_path: Path) -> None:
    context = prepared(spec)

    def fresh() -> qat.Training:
        return qat.Training(context, context.quantized(POLICIES["4/4/8"]))

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
    with pytest.raises(DataError, match="trials must be evaluated on images that are not in the training set"):
        prepared(spec.model_copy(update={"data": folder, "eval_data": folder}))


def test_a_trial_on_a_gpu_repeats_and_agrees_with_the_processor(
    gpu: str, spec: TrialSpec, graph: Graph, latency: LatencyTable
) -> None:
    here = trial.run_trial(prepared(spec), POLICIES["8/8/8"], latency, graph)
    there = spec.model_copy(update={"device": gpu})
    first = trial.run_trial(prepared(there), POLICIES["8/8/8"], latency, graph)
    again = trial.run_trial(prepared(there), POLICIES["8/8/8"], latency, graph)
    assert first.values == again.values
    assert first.values["psnr"] == pytest.approx(here.values["psnr"], abs=0.05)


def test_a_target_without_a_latency_has_none(spec: TrialSpec, graph: Graph, latency: LatencyTable) -> None:
    there = spec.model_copy(update={"target": "bits"})
    table = latency.model_copy(update={"target": "bits", "entries": {}})
    values = trial.run_trial(prepared(there), POLICIES["4/4/8"], table, graph).values
    assert "latency" not in values
    weights = sum(parameter.numel() for parameter in prepared(there).traced.module.parameters())
    assert values["size_runtime"] > 4 * weights > 4 * values["size"], "QONNX keeps float32 tensors"
