"""The target whose float layers run in bfloat16: what is rounded, what is asked of OpenVINO, and what an export says."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx

from autoq.bfloat16 import BFloat16
from autoq.errors import InputError
from autoq.executed import IntegerLayer, IntegerSum, as_executed
from autoq.models import fresh_model, model_info
from autoq.policy import uniform
from autoq.quantize import Quantized, collect, quantize
from autoq.targets import check_usable, load_target, openvino_cpu, openvino_cpu_bf16
from autoq.tracing import Traced, nodes_by_name, trace
from autoq.workbench import execution_on

TARGET = "openvino-cpu-bf16"
IMAGE = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@functools.cache
def network(blocks: int = 1) -> Traced:
    torch.manual_seed(0)
    return trace(fresh_model("srresnet", 2, blocks=blocks, features=8).eval(), model_info("srresnet").patterns)


def quantized(bits: str, blocks: int = 1) -> Quantized:
    policy = uniform(bits, model_info("srresnet").stages)
    return quantize(network(blocks), policy, collect(network(blocks), [IMAGE]), execution_on(TARGET))


def reads_bfloat16(module: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(module.get_submodule(str(node.target)), BFloat16)


def test_float_layers_read_bfloat16() -> None:
    module = as_executed(quantized("32/32/32"))
    layers = [nodes_by_name(module)[layer.node] for layer in network().layers]
    read = [operand for layer in layers for operand in layer.args[:3] if isinstance(operand, fx.Node)]
    assert len(read) > 2 * len(layers), "inputs, weights and biases"
    shuffled = [operand for operand in read if "Shuffle" in type(called(module, operand)).__name__]
    assert len(shuffled) == 1
    assert all(reads_bfloat16(module, operand.all_input_nodes[0] if operand in shuffled else operand) for operand in read)


@pytest.mark.parametrize(("model", "stored"), [("espcn", True), ("xlsr", False), ("fsrcnn", False)])
def test_the_last_convolution_is_stored_and_what_is_behind_it_is_not(model: str, stored: bool) -> None:
    """ESPCN ends in a convolution, XLSR in one with its activation, FSRCNN in a transposed one."""
    traced = trace(fresh_model(model, 3).eval(), model_info(model).patterns)
    policy = uniform("32/32/32", model_info(model).stages)
    module = as_executed(quantize(traced, policy, collect(traced, [IMAGE]), execution_on(TARGET)))
    (node,) = module.graph.find_nodes(op="output")
    while node.op == "output" or "Shuffle" in type(called(module, node)).__name__:
        (node,) = node.all_input_nodes
    assert reads_bfloat16(module, node) is stored
    if model == "fsrcnn":
        assert not any(reads_bfloat16(module, operand) for operand in node.all_input_nodes)


def called(module: fx.GraphModule, node: fx.Node) -> object:
    return module.get_submodule(str(node.target)) if node.op == "call_module" else None


def test_a_sum_goes_with_a_layer_where_nothing_later_reads_the_other_operand() -> None:
    module = as_executed(quantized("32/32/32", blocks=2))
    first, second, last = (node for node in module.graph.nodes if getattr(node.target, "__name__", "") == "add")
    assert [reads_bfloat16(module, operand) for operand in first.args[:2]] == [True, True], "the last sum reads the other, too"
    assert [reads_bfloat16(module, operand) for operand in second.args[:2]] == [True, False]
    assert [reads_bfloat16(module, operand) for operand in last.args[:2]] == [True, True], (
        "the first operand's layer is read before"
    )


def test_a_layer_s_result_is_stored_in_the_units_it_is_added_in() -> None:
    module = as_executed(quantized("8/8/8", blocks=2))
    first, second, last = (each for each in module.modules() if isinstance(each, IntegerSum))
    assert (first.stored is None, second.stored, last.stored) == (False, None, None)
    operand, addend = torch.zeros(1, 1, 1, 2), torch.tensor([[[[0.3, 0.301]]]]) * first.operand.scale * 255
    plain = copy.copy(first)
    plain.stored = None
    in_units = addend / first.operand.scale - first.operand.zero_point
    rounded = (in_units.bfloat16().float() + first.operand.zero_point) * first.operand.scale
    assert torch.equal(first(operand, addend), plain(operand, rounded))


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
        rounded = [each.bfloat16().float() for each in (IMAGE, weight, bias)]
        expected = F.conv2d(*rounded, padding=weight.shape[2] // 2)
    torch.testing.assert_close(seen[first.node], expected)
    assert not torch.equal(seen[first.node], F.conv2d(IMAGE, weight, bias, padding=weight.shape[2] // 2))


def test_integers_are_not_rounded() -> None:
    module = as_executed(quantized("8/8/8"))
    rounded = [node.all_input_nodes[0].name for node in module.graph.nodes if reads_bfloat16(module, node)]
    assert rounded == ["tail"], "of what runs on integers the output alone is stored in float"
    module = as_executed(quantized("feature_extraction=16/8/8,body=8/8/8,upsampling=8/8/8,reconstruction=8/8/8"))
    nodes = nodes_by_name(module)
    first, *others = network().layers
    assert [reads_bfloat16(module, operand) for operand in nodes[first.node].args[:2]] == [True, True]
    assert all(isinstance(module.get_submodule(str(nodes[layer.node].target)), IntegerLayer) for layer in others)


@pytest.mark.parametrize(("able", "reason"), [(["FP32", "BF16"], None), (["FP32", "INT8"], "this processor has no instructions")])
def test_where_the_processor_has_no_bfloat16_it_says_so(
    able: list[str], reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_cpu_bf16, "core", lambda: Spy(able=able))
    if reason is None:
        check_usable(TARGET)
        return
    with pytest.raises(InputError, match=f"target '{TARGET}': {reason} .* type --target openvino-cpu; autoq targets lists"):
        check_usable(TARGET)


def test_openvino_is_asked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(able=["BF16"])
    for module in (openvino_cpu, openvino_cpu_bf16):
        monkeypatch.setattr(module, "core", lambda: spy)
    for name in ("openvino-cpu", TARGET):
        with pytest.raises(StopIteration):
            load_target(name).load(b"", 1)
    assert spy.asked == ["f32", "bf16"]


class Spy:
    """Stands for OpenVINO's core: has these capabilities, and keeps the precisions that networks are compiled for."""

    def __init__(self, able: list[str]) -> None:
        self.able, self.asked = able, list[str]()

    def get_property(self, device: str, name: str) -> list[str]:
        return self.able

    def read_model(self, file: bytes) -> bytes:
        return file

    def compile_model(self, model: bytes, device: str, settings: dict[str, Any]) -> None:
        self.asked.append(settings["INFERENCE_PRECISION_HINT"])
        raise StopIteration
