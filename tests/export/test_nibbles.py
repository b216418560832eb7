"""Weights stored in four bits: the same numbers from the same kernels as stored in eight."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto

from autoq.config.policy import uniform
from autoq.export.nibbles import store_nibbles
from autoq.export.onnx import Graph, export_graph, for_runtime, payload_bytes, weight_widths, write_plain
from autoq.export.widths import Width
from autoq.graph.quantize import collect, quantize
from autoq.graph.trace import Traced
from autoq.networks import model_info
from autoq.targets import TARGETS, load_target
from autoq.targets.openvino_cpu import core
from autoq.trial.context import execution_on

STAGES = model_info("srresnet").stages
WEIGHTS = (8 * 3 * 81, 8 * 8 * 9, 8 * 8 * 9, 8 * 8 * 9, 32 * 8 * 9)
"""Values of every kernel of the tiny network but the last."""

LAST = 12 * 32 * 5 * 5
"""Of the last one, moved before the shuffle."""


@pytest.fixture(scope="module")
def graph(tiny_traced: Traced) -> Graph:
    return export_graph(tiny_traced)


def both(traced: Traced, graph: Graph, bits: str, target: str) -> tuple[Graph, Graph]:
    """A policy's file with int8 weights, and as runtimes get it."""
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    execution = execution_on(target)
    network = quantize(traced, uniform(bits, STAGES), collect(traced, [image]), execution)
    clip_integers = TARGETS[target].file == "qdq-integer-clip"
    eight, four = (write_plain(graph, network, clip_integers) for _ in range(2))
    return for_runtime(eight, {}), for_runtime(four, weight_widths(network))


@pytest.mark.parametrize("target", ["openvino-cpu", "onnxruntime-cpu"])
@pytest.mark.parametrize("bits", ["4/8/8", "2/4/8", "feature_extraction=3/8,body=8/8/8,upsampling=4/8,reconstruction=16/16"])
def test_runtimes_give_the_same_numbers(tiny_traced: Traced, graph: Graph, bits: str, target: str) -> None:
    image = np.random.default_rng(0).random((1, 3, 19, 30), np.float32)
    eight, four = (load_target(target).load(file.SerializeToString(), 1)(image) for file in both(tiny_traced, graph, bits, target))
    assert (eight == four).all()


def test_openvino_runs_the_same_kernels(tiny_traced: Traced, graph: Graph) -> None:
    def kernels(file: Graph) -> list[tuple[str, str]]:
        model = core().read_model(file.SerializeToString())
        compiled = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        infos = [operator.get_rt_info() for operator in compiled.get_runtime_model().get_ops()]
        return sorted((info["layerType"].astype(str), info["runtimePrecision"].astype(str)) for info in infos)

    eight, four = both(tiny_traced, graph, "4/8/8", "openvino-cpu")
    assert kernels(four) == kernels(eight)
    assert sum(kind == "Convolution" and precision in ("u8", "i8") for kind, precision in kernels(four)) == len(WEIGHTS) + 1


def test_onnxruntime_runs_the_same_operators(tiny_traced: Traced, graph: Graph, tmp_path: Path) -> None:
    def operators(file: Graph) -> list[str]:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        options.log_severity_level = 3
        onnxruntime.InferenceSession(file.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return sorted(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)

    eight, four = both(tiny_traced, graph, "4/8/8", "onnxruntime-cpu")
    assert operators(four) == operators(eight)
    assert "QLinearConv" in operators(four)


@pytest.mark.parametrize(("bits", "halved"), [("4/8/8", True), ("2/8/8", True), ("5/8/8", False)])
def test_two_weights_share_a_byte(tiny_traced: Traced, graph: Graph, bits: str, halved: bool) -> None:
    eight, four = both(tiny_traced, graph, bits, "openvino-cpu")
    assert payload_bytes(eight) - payload_bytes(four) == (sum(WEIGHTS) + LAST) // 2 * halved
    stored = [tensor for tensor in four.graph.initializer if tensor.data_type == TensorProto.INT4]
    assert sum(len(tensor.raw_data) for tensor in stored) == (sum(WEIGHTS) + LAST) // 2 * halved
    assert {opset.version for opset in four.opset_import} == {21 if halved else 20}


def test_an_odd_number_of_weights_and_levels_that_are_too_wide() -> None:
    def stored(values: list[int]) -> tuple[Graph, TensorProto]:
        weight = onnx.numpy_helper.from_array(np.array(values, np.int8), "w")
        scale = onnx.numpy_helper.from_array(np.array(1, np.float32), "s")
        output = onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, [len(values)])
        node = onnx.helper.make_node("DequantizeLinear", ["w", "s"], ["y"])
        model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [output], [weight, scale]))
        store_nibbles(model, {"w": Width(4, signed=True)})
        return model, model.graph.initializer[0]

    model, odd = stored([-8, 7, 3])
    assert (odd.data_type, odd.raw_data) == (TensorProto.INT4, bytes([0x78, 0x03]))
    assert payload_bytes(model) == 2 + 4
    assert stored([-8, 64, 3])[1].data_type == TensorProto.INT8
