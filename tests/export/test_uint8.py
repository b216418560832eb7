"""Files of 8 bits from image to image: what is in them, and what a runtime makes of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper

from autoq.config.policy import Policy, uniform
from autoq.costs.size import packed_bytes
from autoq.errors import InputError
from autoq.export.formats import PLAIN, WRITERS
from autoq.export.onnx import Graph, export_graph, payload_bytes, weight_widths
from autoq.export.packed import pack, unpack
from autoq.export.packed import payload_bytes as packed_payload_bytes
from autoq.graph.quantize import Quantized, collect, quantize
from autoq.graph.trace import Traced, check_integers_only, trace
from autoq.networks import fresh_model, model_info, staged_model
from autoq.targets import TARGETS, load_target
from autoq.trial.context import execution_on
from tests.conftest import decibels, simulated

TARGET = "npu-uint8"
INFO = TARGETS[TARGET]
POLICY = uniform("8/8/8", model_info("xlsr").stages, "minmax", "minmax", INFO.formats, INFO.output)


@pytest.fixture(scope="module")
def traced() -> Traced:
    return trace(*staged_model("xlsr", 3))


@pytest.fixture(scope="module")
def graph(traced: Traced) -> Graph:
    return export_graph(traced)


@pytest.fixture(scope="module")
def quantized(traced: Traced) -> Quantized:
    image = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    return quantize(traced, POLICY, collect(traced, [image]), execution_on(TARGET))


def test_every_number_is_8_bits(graph: Graph, quantized: Quantized) -> None:
    model = WRITERS[INFO.file](graph, quantized)
    for image in (model.graph.input[0], model.graph.output[0]):
        assert image.type.tensor_type.elem_type == TensorProto.UINT8
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    weights = [name for name in tensors if name.endswith("weight.integer")]
    assert len(weights) == 11
    for name in weights:
        scale, zero_point = (tensors[name.replace("integer", part)] for part in ("scale", "zero_point"))
        assert (tensors[name].dtype, scale.shape, zero_point.shape, zero_point.dtype) == (np.uint8, (), (), np.uint8)
        assert 0 < zero_point < 255
    floats = [name for name, values in tensors.items() if values.dtype == np.float32]
    assert all(name.endswith(".scale") and tensors[name].size == 1 for name in floats)
    assert (tensors["output.scale"], tensors["output.zero_point"]) == (np.float32(1 / 255), 0)


def test_every_layer_is_an_integer_kernel(graph: Graph, quantized: Quantized, tmp_path: Path) -> None:
    """The clip to [0, 1] in front of the last quantizer included, which is that quantizer's own."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    file = WRITERS[INFO.file](graph, quantized).SerializeToString()
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    found = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert found["QLinearConv"] == 11
    assert not {"Conv", "Clip", "Relu", "QuantizeLinear", "DequantizeLinear"}.intersection(found)


@pytest.mark.parametrize(("target", "least"), [(TARGET, 50), ("openvino-cpu", 40)])
def test_any_runtime_takes_images_for_pixels(graph: Graph, quantized: Quantized, target: str, least: float) -> None:
    """The file is the same; a runner takes and gives float32 in [0, 1].

    OpenVINO has no integer kernels for weights with a zero point, and between its float kernels it may leave a rounding out.
    """
    image = np.random.default_rng(1).integers(0, 256, (1, 3, 40, 56)).astype(np.float32) / np.float32(255)
    found = load_target(target).load(WRITERS[INFO.file](graph, quantized).SerializeToString(), 1)(image)
    expected = simulated(quantized, torch.from_numpy(image))
    assert (found.dtype, found.shape) == (np.float32, (1, 3, 120, 168))
    np.testing.assert_array_equal(np.rint(found * 255), found * 255)
    assert decibels(found, expected) >= least


def test_a_package_holds_exactly_the_size(traced: Traced, graph: Graph, quantized: Quantized, tmp_path: Path) -> None:
    plain = PLAIN[INFO.file](graph, quantized)
    package = pack(plain, weight_widths(quantized), POLICY)
    assert packed_payload_bytes(package) == packed_bytes(quantized.plan)
    (tmp_path / "x.safetensors").write_bytes(package)
    found = unpack(tmp_path / "x.safetensors")
    assert found.model.SerializeToString() == plain.SerializeToString()
    assert found.policy == POLICY == Policy.from_dict(POLICY.to_dict())
    # integers, a scale and a zero point of 11 weights and of the tensors that layers read or give, an int32 a bias
    weights = sum(values.numel() for name, values in traced.module.named_parameters() if name.endswith("weight"))
    biases = sum(values.numel() for name, values in traced.module.named_parameters() if name.endswith("bias"))
    assert packed_payload_bytes(package) == weights + 4 * biases + 5 * (11 + 13)
    assert payload_bytes(plain) > packed_payload_bytes(package)


def test_the_float_network_stays_float(traced: Traced, graph: Graph) -> None:
    """What others are compared with."""
    exact = uniform("32/32/32", model_info("xlsr").stages, formats=INFO.formats, output=INFO.output)
    assert exact.output == "float"
    model = WRITERS[INFO.file](graph, quantize(traced, exact, {}, execution_on(TARGET)))
    assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert not {"QuantizeLinear", "DequantizeLinear"}.intersection(node.op_type for node in model.graph.node)


def test_a_network_that_reads_its_image_in_float_is_refused() -> None:
    luma = trace(fresh_model("espcn-y", 3).eval(), model_info("espcn-y").patterns)
    with pytest.raises(InputError, match="target 'npu-uint8': '.*' of this network reads the image in float.*such as xlsr"):
        check_integers_only(luma, TARGET)
