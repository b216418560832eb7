"""What every entry of TARGETS must do. Where a target does not run here, it says why."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnxruntime
import pytest
import torch
import yaml

from autoq.config.policy import FLOAT_BITS, ROLES, Role, uniform
from autoq.config.space_file import bundled_space, load_space, parse_space
from autoq.config.spec import TrialSpec
from autoq.costs.latency.table import LatencyTable
from autoq.errors import InputError, SpaceError
from autoq.export.onnx import Graph, export_graph
from autoq.graph.quantize import Quantized, collect, quantize
from autoq.graph.trace import Traced, trace
from autoq.images import crops, data
from autoq.networks import build_model, model_info, staged_model
from autoq.quantizers.range_estimators import Statistics
from autoq.study.study import space_facts
from autoq.targets import TARGETS, load_target, why_unusable
from autoq.targets.onnxruntime_cuda import PROVIDER, _starts
from autoq.trial.context import execution_on, prepare, runtime_model
from autoq.trial.run import run_trial, trained
from tests.conftest import decibels, simulated, small_image

HERE = [name for name in TARGETS if why_unusable(name) is None]
WIDTHS = ("32/32/32", "8/8/8", "6/6/8", "4/8/8", "4/4/8", "8/8/32", "16/16/8")

Subject = tuple[str, Traced, Graph, dict[str, Statistics], torch.Tensor]


def policies(target: str) -> list[str]:
    """Those of WIDTHS whose every width the target has for its role."""
    formats = TARGETS[target].formats
    return [
        text for text in WIDTHS if all(int(bits) in formats[role].bits for bits, role in zip(text.split("/"), ROLES, strict=True))
    ]


CASES = [(target, bits) for target in HERE for bits in policies(target)]


def subject(model: str, traced: Traced, scale: int, image: torch.Tensor) -> Subject:
    pairs = [data.make_pair(photograph, scale) for photograph in data.train_images(None)]
    return model, traced, export_graph(traced), collect(traced, data.calibration_patches(pairs, 0)), image


@functools.cache
def xlsr() -> Subject:
    """The bundled network on a photograph that no network was trained on."""
    low = crops.bundled(3)[0].low
    return subject("xlsr", trace(*staged_model("xlsr", 3, None, {})), 3, data.to_tensor(low))


@functools.cache
def public_srgan(shared: Path) -> Subject:
    traced = trace(build_model("srgan", 4, shared / "weights" / "srgan_5block_x4_leftthomas.pth"), model_info("srgan").patterns)
    low = data.make_pair(data.read_folder(shared / "test" / "Set5")[2], 4).low
    return subject("srgan", traced, 4, data.to_tensor(low))


def agreement(target: str, bits: str, subject: Subject) -> float:
    """dB between what the runtime computes from its file and training's network."""
    model, traced, graph, statistics, image = subject
    info = TARGETS[target]
    policy = uniform(bits, model_info(model).stages, formats=info.formats, output=info.output)
    reached = of_network(target, quantize(traced, policy, statistics, execution_on(target)), graph, image)
    print(f"{target} {model} {bits}: {reached:.1f} dB")  # noqa: T201 - for -rP
    return reached


def of_network(target: str, quantized: Quantized, graph: Graph, image: torch.Tensor) -> float:
    """`agreement` of a quantized network."""
    run = load_target(target).load(runtime_model(target, graph, quantized).SerializeToString(), threads=1)
    expected = simulated(quantized, image).clip(0, 1)
    found = run(image.numpy())
    assert (found.dtype, found.shape) == (np.float32, expected.shape)
    return decibels(found.clip(0, 1), expected)


@pytest.mark.parametrize("name", TARGETS)
def test_the_facts_are_whole(name: str) -> None:
    info = TARGETS[name]
    module, _, _ = info.location.partition(":")
    assert module == f"autoq.targets.{name.replace('-', '_')}"
    assert tuple(info.formats) == ROLES
    for formats in info.formats.values():
        assert list(formats.bits) == sorted(set(formats.bits))
        assert {*formats.bits} <= {*range(1, 17), FLOAT_BITS}
        assert formats.granularity
        assert formats.signed
        assert 8 in formats.bits
    assert 8 <= info.integer_bits <= 16
    assert info.integers
    assert (info.model is None) == ("modelled" not in info.latency)
    assert info.output in ("float", "uint8")


@pytest.mark.parametrize("name", TARGETS)
def test_a_space_gives_what_the_target_gives(name: str) -> None:
    facts, output = space_facts("xlsr", name), TARGETS[name].output
    space = load_space(bundled_space("xlsr"), facts)
    assert space.output == next(space.enumerate()).output == output
    other = {"float": "uint8", "uint8": "float"}[output]
    with pytest.raises(SpaceError, match=f"my.yaml: output: '{other}': {name} outputs {output}; type output: {output}$"):
        parse_space({"roles": {role: {"bits": 8} for role in ROLES}, "output": other}, facts, "my.yaml")


@pytest.mark.parametrize("name", TARGETS)
def test_it_runs_here_or_says_why_not(name: str) -> None:
    reason = why_unusable(name)
    if reason is None:
        assert any(character.isdigit() for character in load_target(name).version())
        return
    assert "\n" not in reason
    with pytest.raises(InputError) as error:
        load_target(name)
    assert str(error.value) == f"target '{name}': {reason}, or choose a target from `autoq targets`"


def test_cuda_is_there_only_where_its_provider_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where libraries are missing ONNX Runtime either raises or goes on without the provider."""

    class Session:
        providers: ClassVar[list[str]] = []

        def __init__(self, *given: object, **options: object) -> None:
            if not self.providers:
                raise RuntimeError("libcudnn.so is missing")

        def get_providers(self) -> list[str]:
            return self.providers

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    for available, started, reason in (
        (["CPUExecutionProvider"], [], "onnxruntime has no CUDAExecutionProvider; .*pip install onnxruntime-gpu"),
        ([PROVIDER], [], "CUDAExecutionProvider does not start"),
        ([PROVIDER], ["CPUExecutionProvider"], "CUDAExecutionProvider does not start"),
        ([PROVIDER], [PROVIDER, "CPUExecutionProvider"], None),
    ):
        _starts.cache_clear()
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda available=available: available)
        monkeypatch.setattr(Session, "providers", started)
        found = why_unusable("onnxruntime-cuda")
        assert found is None if reason is None else re.match(reason, str(found))
    _starts.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert why_unusable("onnxruntime-cuda") == "onnxruntime is not installed; type `pip install onnxruntime-gpu`"


@pytest.mark.parametrize("name", TARGETS)
def test_the_bundled_space_is_cut_to_what_the_target_has(name: str) -> None:
    info = TARGETS[name]
    space = load_space(bundled_space("srgan"), space_facts("srgan", name))
    for stage in space.choices.values():
        for role, choices in stage.items():
            formats = info.formats[role]
            written = {"weight": (4, 6, 8, 16), "activation": (4, 6, 8, 16), "skip": (8, 32)}[role]
            assert choices.bits == tuple(bits for bits in written if bits in formats.bits)
            assert (choices.granularity, choices.signed) == (formats.granularity[0], formats.signed[0])


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("role", ROLES)
def test_a_space_that_shares_nothing_with_the_target_names_the_conflict(name: str, role: Role) -> None:
    formats, facts = TARGETS[name].formats[role], space_facts("srgan", name)
    every = {each: {"bits": [8]} for each in ROLES}
    for field, values in (("granularity", ("channel", "tensor")), ("signed", (True, False)), ("bits", (3, 8, 16, 32))):
        lacking = [value for value in values if value not in getattr(formats, field)]
        has = [str(value).lower() for value in getattr(formats, field)]
        for value in lacking:
            given = {"roles": {**every, role: {**every[role], field: value}}}
            with pytest.raises(SpaceError) as error:
                parse_space(given, facts, "my.yaml")
            stage = "feature_extraction" if role == "weight" else "body"
            assert str(error.value) == (
                f"my.yaml: {stage}.{role}.{field}: {name} executes only {' or '.join(has)}, found '{value}'; type {field}: {has[0]}"
            )
        allowed = getattr(formats, field)
        if field != "bits" and len(allowed) == 1:  # with what the target has not beside it, that is what is left
            space = parse_space(
                yaml.safe_load(yaml.safe_dump({"roles": {**every, role: {"bits": 8, field: list(values)}}})), facts, "f"
            )
            assert getattr(space.choices["body"][role], field) == allowed[0]
        elif field != "bits":
            with pytest.raises(SpaceError, match=f"{has[0]} and {has[1]} are listed, expected only one; type {field}: {has[0]}"):
                parse_space({"roles": {**every, role: {"bits": 8, field: list(values)}}}, facts, "f")


@pytest.mark.parametrize(("name", "bits"), CASES)
def test_the_runtime_agrees_with_training_on_xlsr(name: str, bits: str) -> None:
    """Often to the last bit; one value that rounds the other way shows the more, the narrower activations are."""
    narrow = int(bits.split("/")[1]) < 8
    assert agreement(name, bits, xlsr()) >= (45 if narrow or TARGETS[name].bfloat16 else 60)


@pytest.mark.parametrize(("name", "bits"), [case for case in CASES if case[1] in ("8/8/8", "6/6/8", "4/4/8", "16/16/8")])
def test_the_runtime_agrees_with_training_on_a_public_srgan(shared: Path, name: str, bits: str) -> None:
    """At 40 dB or more, except where the steps of narrow activations are wide and sums in bfloat16 fall on others."""
    least = {"6/6/8": 35, "4/4/8": 26}.get(bits, 40) if TARGETS[name].bfloat16 else 40
    assert agreement(name, bits, public_srgan(shared)) >= least


@pytest.mark.parametrize("name", HERE)
def test_a_trial_records_how_near_its_file_is_to_training(name: str, tiny_weights: Path, tmp_path: Path) -> None:
    """After quantizing alone, 40 dB or more, over all evaluation images."""
    spec = TrialSpec(
        model="srresnet", scale=2, weights=tiny_weights, target=name, steps=0, data=small_image(tmp_path / "train", 1),
        eval_data=small_image(tmp_path / "eval", 2), test_data=small_image(tmp_path / "test", 3),
    )  # fmt: skip
    context, info = prepare(spec), TARGETS[name]
    graph = export_graph(context.traced)
    table = LatencyTable(model="srresnet", target=name, runtime="", frame=(16, 16), threads=1, machine="", entries={})
    policy = uniform("8/8/8", model_info("srresnet").stages, formats=info.formats, output=info.output)
    found = run_trial(context, policy, table, graph).values["simulation_agreement_db"]
    assert found >= 40
    if info.executes:
        own = of_network(name, trained(context, policy, 0), graph, data.to_tensor(context.pairs[0].low))
        assert found == pytest.approx(min(own, 100), abs=0.1)
    else:
        assert found == 100, "the network in torch is judged there"
