"""The target whose float layers run in bfloat16: what is rounded, what is asked of OpenVINO, and what an export says."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import openvino
import pytest
import torch
import torch.nn.functional as F
from torch import fx

from autoq.errors import InputError
from autoq.executed import BFloat16, IntegerLayer, as_executed
from autoq.models import fresh_model, model_info
from autoq.policy import uniform
from autoq.quantize import Quantized, collect, quantize
from autoq.targets import check_usable, load_target
from autoq.targets.openvino_cpu_bf16 import OpenVINOBFloat16
from autoq.tracing import Traced, nodes_by_name, producer, trace
from autoq.workbench import execution_on

TARGET = "openvino-cpu-bf16"
IMAGE = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@functools.cache
def network() -> Traced:
    torch.manual_seed(0)
    return trace(fresh_model("srresnet", 2, blocks=1, features=8).eval(), model_info("srresnet").patterns)


def quantized(bits: str) -> Quantized:
    policy = uniform(bits, model_info("srresnet").stages)
    return quantize(network(), policy, collect(network(), [IMAGE]), execution_on(TARGET))


def reads_bfloat16(module: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(module.get_submodule(str(node.target)), BFloat16)


def test_float_layers_and_sums_read_bfloat16() -> None:
    module = as_executed(quantized("32/32/32"))
    layers = {layer.node for layer in network().layers}
    assert all(reads_bfloat16(module, producer(module, site)) for site in network().sites if site.node in layers)
    sums = [node for node in module.graph.nodes if node.target is torch.add or getattr(node.target, "__name__", "") == "add"]
    assert sums
    for total in sums:  # the other operand stays in a layer's accumulators
        assert sorted(reads_bfloat16(module, operand) for operand in total.args[:2]) == [False, True]


def test_a_layer_in_bfloat16_sums_in_float32() -> None:
    traced = trace(fresh_model("espcn", 2, channels=3).eval(), model_info("espcn").patterns)
    policy = uniform("32/32/32", model_info("espcn").stages)
    module = as_executed(quantize(traced, policy, collect(traced, [IMAGE]), execution_on(TARGET)))
    first = traced.layers[0]
    weight, bias = (traced.module.get_parameter(f"{first.path}.{name}") for name in ("weight", "bias"))
    seen: dict[str, torch.Tensor] = {}

    class Kept(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            seen[n.name] = super().run_node(n)
            return seen[n.name]

    with torch.no_grad():
        Kept(module).run(IMAGE)
        expected = F.conv2d(IMAGE.bfloat16().float(), weight.bfloat16().float(), bias, padding=weight.shape[2] // 2)
    torch.testing.assert_close(seen[first.node], expected)
    assert not torch.equal(seen[first.node], F.conv2d(IMAGE, weight, bias, padding=weight.shape[2] // 2))


def test_integers_are_not_rounded() -> None:
    module = as_executed(quantized("8/8/8"))
    assert not any(reads_bfloat16(module, node) for node in module.graph.nodes)
    module = as_executed(quantized("feature_extraction=16/8/8,body=8/8/8,upsampling=8/8/8,reconstruction=8/8/8"))
    nodes = nodes_by_name(module)
    first, *others = network().layers
    assert [reads_bfloat16(module, operand) for operand in nodes[first.node].args[:2]] == [True, True]
    assert all(isinstance(module.get_submodule(str(nodes[layer.node].target)), IntegerLayer) for layer in others)


@pytest.mark.parametrize(("able", "reason"), [(["FP32", "BF16"], None), (["FP32", "INT8"], "this processor has no instructions")])
def test_where_the_processor_has_no_bfloat16_it_says_so(
    able: list[str], reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "Core", with_capabilities(able))
    if reason is None:
        check_usable(TARGET)
        return
    with pytest.raises(InputError, match=f"target '{TARGET}': {reason} .* type --target openvino-cpu; autoq targets lists"):
        check_usable(TARGET)


def with_capabilities(able: list[str]) -> Callable[[], openvino.Core]:
    """OpenVINO on a processor that has these."""

    class Core(openvino.Core):  # type: ignore[misc]
        def get_property(self, device: str, name: str) -> Any:
            return able if name == "OPTIMIZATION_CAPABILITIES" else super().get_property(device, name)

    return Core


def test_openvino_is_asked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(OpenVINOBFloat16, "missing", staticmethod(lambda: None))
    for name in ("openvino-cpu", TARGET):
        target: Any = load_target(name)
        monkeypatch.setattr(target, "core", Spy(asked))
        with pytest.raises(StopIteration):
            target.load(b"", 1)
    assert asked == ["f32", "bf16"]


class Spy:
    """Stands for OpenVINO's core: keeps the precision that a network is compiled for."""

    def __init__(self, asked: list[str]) -> None:
        self.asked = asked

    def read_model(self, file: bytes) -> bytes:
        return file

    def compile_model(self, model: bytes, device: str, settings: dict[str, Any]) -> None:
        self.asked.append(settings["INFERENCE_PRECISION_HINT"])
        raise StopIteration
