"""The target whose float layers run in bfloat16: what is rounded, what is asked of OpenVINO, and what an export says."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from autoq.bfloat16 import BFloat16, storage_of
from autoq.errors import InputError
from autoq.executed import IntegerLayer, IntegerSum, as_executed
from autoq.export.onnx import export_graph
from autoq.models import fresh_model, model_info
from autoq.policy import uniform
from autoq.quantize import Quantized, collect, quantize
from autoq.targets import check_usable, load_target, openvino_cpu, openvino_cpu_bf16, why_unusable
from autoq.tracing import Traced, nodes_by_name, roles_by_stage, trace
from autoq.workbench import execution_on, runtime_model

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
    return storage_of(module, node) is not None


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
    first, *others = (node for node in module.graph.nodes if getattr(node.target, "__name__", "") == "add")
    assert [reads_bfloat16(module, operand) for operand in first.args[:2]] == [True, True], "the last sum reads the other, too"
    assert len(others) == 2
    for total in others:
        assert [reads_bfloat16(module, operand) for operand in total.args[:2]] == [True, False]


class Joined(nn.Module):
    """Two convolutions, and what a variant makes of them; another one last."""

    def __init__(self, join: Callable[[Tensor, Tensor, nn.Module], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.join, self.one, self.other = join, nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.join(F.leaky_relu(self.one(x)), x, self.other))


JOINED: dict[str, tuple[Callable[[Tensor, Tensor, nn.Module], Tensor], str]] = {
    "the convolution reads the other operand": (lambda y, x, conv: y + conv(y), "leaky_relu other add last"),
    "the convolution does not": (lambda y, x, conv: torch.sigmoid(y) + conv(y), "leaky_relu sigmoid add last"),
    "an activation between": (lambda y, x, conv: torch.sigmoid(y) + F.relu(conv(y)), "leaky_relu relu add last"),
    "twice the same": (lambda y, x, conv: (z := conv(y)) + z, "leaky_relu other add last"),
    "a chain": (lambda y, x, conv: (conv(y) * y + torch.sigmoid(y)) * torch.tanh(y), "leaky_relu other sigmoid tanh mul_1 last"),
    "a chain of what is read before": (lambda y, x, conv: conv(y) * y + y, "leaky_relu other mul add last"),
    "sums": (lambda y, x, conv: torch.sigmoid(y) + torch.tanh(y) + y, "leaky_relu tanh add add_1 last"),
    "gated": (lambda y, x, conv: torch.sigmoid(conv(y)) * y, "leaky_relu sigmoid mul last"),
    "scaled": (lambda y, x, conv: (y + conv(y)) * 0.2 + torch.tanh(y), "leaky_relu other tanh add_1 last"),
    "split": (lambda y, x, conv: torch.cat([(z := torch.split(conv(y), 4, 1))[1], z[0]], 1), "leaky_relu other cat last"),
    "unread": (lambda y, x, conv: F.relu_(conv(y)), "leaky_relu other relu_ last"),
}
"""By what is special: the operation, and whose results are stored."""


@pytest.mark.parametrize("name", JOINED)
def test_what_is_stored_is_what_openvino_stores(name: str) -> None:
    join, stored = JOINED[name]
    traced = trace(Joined(join).eval(), {"all": ("*",)})
    policy = uniform("32/32/32", roles_by_stage(traced.sites))
    quantized = quantize(traced, policy, collect(traced, [IMAGE]), execution_on(TARGET))
    module = as_executed(quantized)
    rounded = [node.all_input_nodes[0] for node in module.graph.nodes if reads_bfloat16(module, node)]
    assert " ".join(node.name for node in rounded if node.op.startswith("call")) == stored
    if why_unusable(TARGET) is None:
        file = runtime_model(TARGET, export_graph(traced), quantized).SerializeToString()
        with torch.no_grad():
            expected = module(IMAGE).numpy()
        found = load_target(TARGET).load(file, 1)(IMAGE.numpy())
        assert np.mean((found - expected) ** 2) < 1e-7 * np.mean(expected**2)


def test_a_layer_s_result_is_stored_in_the_units_it_is_added_in() -> None:
    module = as_executed(quantized("8/8/8", blocks=2))
    first, second, last = (each for each in module.modules() if isinstance(each, IntegerSum))
    assert [isinstance(each.stored, BFloat16) for each in (first, second, last)] == [True, False, False]
    plain = copy.deepcopy(first)
    plain.stored = nn.Identity()
    scale, zero_point = first.operand.scale, first.operand.zero_point
    operand, addend = torch.zeros(1, 1, 1, 200), torch.linspace(-300, 300, 200).reshape(1, 1, 1, 200) * scale
    in_units = (addend / scale - zero_point).bfloat16().float()
    found = first(operand, addend)
    assert not torch.equal(found, plain(operand, addend))
    torch.testing.assert_close(
        found, plain(operand, (in_units + zero_point) * scale), rtol=0, atol=float(first.output_quantizer.scale) * 1.01
    )


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
