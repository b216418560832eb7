"""The written file against the fake-quantized network, in the runtimes that execute it."""

import functools
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper

from autoq.config.policy import Granularity, Policy, StageQuant, TensorQuant, uniform
from autoq.errors import PolicyError
from autoq.export.onnx import Graph, export_graph, payload_bytes, write_qdq
from autoq.graph.quantize import Execution, Quantized, collect, quantize
from autoq.graph.trace import Traced, trace
from autoq.images import data
from autoq.networks import build_model, model_info
from autoq.targets import load_target
from autoq.trial.context import execution_on
from tests.conftest import decibels, simulated

INT8 = execution_on("openvino-cpu")
INFO = model_info("srgan")
MIXED = (
    "feature_extraction=8/8,body=4/8/8,upsampling=6/8,reconstruction=8/6",
    "feature_extraction=16/16,body=8/6/32,upsampling=4/4,reconstruction=16/16",
)


@functools.cache
def public_srgan(shared: Path) -> tuple[Traced, Graph, dict, list[torch.Tensor]]:
    traced = trace(build_model("srgan", 4, shared / "weights" / "srgan_5block_x4_leftthomas.pth"), INFO.patterns)
    pairs = [data.make_pair(image, 4) for image in data.train_images(None)]
    images = [data.to_tensor(data.make_pair(image, 4).low) for image in data.read_folder(shared / "test" / "Set5")[1:]]
    return traced, export_graph(traced), collect(traced, data.calibration_patches(pairs, 0)), images


@pytest.mark.parametrize(
    ("bits", "least"), [("8/8/8", 54), ("6/6/8", 40), ("4/8/8", 54), ("4/4/8", 40), (MIXED[0], 50), (MIXED[1], 40)]
)
def test_openvino_agrees_with_training_s_network(shared: Path, bits: str, least: float) -> None:
    """On every photograph. Float sums are rounded differently by every processor's kernels, which 4-bit layers behind them show."""
    traced, graph, statistics, images = public_srgan(shared)
    network = quantize(traced, uniform(bits, INFO.stages, "minmax", "minmax"), statistics, INT8)
    file = write_qdq(graph, network)
    weights = [tensor for tensor in file.graph.initializer if len(tensor.dims) == 4]
    assert sum(tensor.data_type in (TensorProto.INT8, TensorProto.INT4) for tensor in weights) == len(network.integer_layers)
    run = load_target("openvino-cpu").load(file.SerializeToString(), threads=2)
    agreement = [decibels(run(image.numpy()).clip(0, 1), simulated(network, image).clip(0, 1)) for image in images]
    assert min(agreement) >= least, agreement


@pytest.fixture(scope="module")
def graph(tiny_traced: Traced) -> Graph:
    return export_graph(tiny_traced)


def network(traced: Traced, bits: str) -> Quantized:
    statistics = collect(traced, [torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))])
    return quantize(traced, uniform(bits, INFO.stages), statistics, INT8)


@pytest.mark.parametrize("bits", ["32/32/32", "8/8/8", "4/4/8", "8/32/32", "16/16/8"])
def test_onnxruntime_agrees_at_any_size(tiny_traced: Traced, graph: Graph, bits: str) -> None:
    quantized = network(tiny_traced, bits)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(write_qdq(graph, quantized).SerializeToString(), options)
    for height, width in ((16, 16), (11, 23)):
        image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(height))
        expected = simulated(quantized, image)
        (found,) = session.run(None, {"input": image.numpy()})
        assert found.shape == (1, 3, 2 * height, 2 * width)
        assert np.mean((found - expected) ** 2) < 1e-6


def mixed(weight: TensorQuant, activation: TensorQuant, skip: TensorQuant) -> Policy:
    given = {"weight": weight, "activation": activation, "skip": skip}
    return Policy(tuple((stage, StageQuant(**{role: given[role] for role in roles})) for stage, roles in INFO.stages.items()))


@pytest.mark.parametrize(
    ("weights", "maps"),
    [
        (("lsq+", 4), ("lsq+", 8)),
        (("fqsr", 4), ("fqsr", 4)),
        (("lsq", 8), ("pams", 4)),
        (("dorefa", 7), ("dorefa", 2)),
        (("dorefa", 1), ("pact", 1)),
        (("binary", 1), ("pact", 8)),
        (("ternary", 2), ("pams", 8)),
        (("inq", 4), ("lsq+", 2)),
    ],
    ids=lambda given: "".join(map(str, given)),
)
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_every_quantizer_is_executed_as_its_integers(
    tiny_traced: Traced, graph: Graph, weights: tuple[str, int], maps: tuple[str, int], granularity: Granularity
) -> None:
    """After some training, so that what is learned, fixed or follows the weights has moved."""
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    weight = TensorQuant(weights[1], weights[0], "minmax", granularity, signed=True)
    feature = TensorQuant(maps[1], maps[0], "minmax", "tensor", signed=False)
    quantized = quantize(tiny_traced, mixed(weight, feature, feature), collect(tiny_traced, [images]), INT8)
    optimizer = torch.optim.Adam(quantized.module.parameters(), 1e-3)
    for _ in range(22):
        optimizer.zero_grad()
        quantized.module.train()(images).square().mean().backward()
        optimizer.step()
    file = write_qdq(graph, quantized)
    stored = [numpy_helper.to_array(tensor) for tensor in file.graph.initializer if tensor.name.endswith("weight.integer")]
    assert len(stored) == len(quantized.integer_layers) == 6
    # zeros apart: the last kernel, moved before the shuffle, is padded with them
    assert all(len(np.unique(integers[integers != 0])) <= 2 ** weights[1] for integers in stored)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(file.SerializeToString(), options)
    openvino = load_target("openvino-cpu").load(file.SerializeToString(), threads=1)
    expected = simulated(quantized, images[:1])
    for found in (session.run(None, {"input": images[:1].numpy()})[0], openvino(images[:1].numpy())):
        assert decibels(found, expected, peak=np.sqrt(np.mean(expected**2))) >= 40


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 6])
def test_a_narrow_tensor_read_as_another_narrow_one(tiny_traced: Traced, graph: Graph, bits: int, signed: bool) -> None:
    """A sum's quantized output is a layer's input: two clipped tensors in a row, with scales that do not divide each other."""
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    weight, feature = TensorQuant(8, "lsq", granularity="channel", signed=True), TensorQuant(bits, "lsq", signed=signed)
    quantized = quantize(tiny_traced, mixed(weight, feature, feature), collect(tiny_traced, [image]), INT8)
    random = torch.Generator().manual_seed(2)
    for name, parameter in quantized.module.named_parameters():
        if name.endswith("log_gain"):
            parameter.data.normal_(0, 0.3, generator=random)
    file = write_qdq(graph, quantized)
    assert [node.op_type for node in file.graph.node].count("Min") > 0
    found = load_target("openvino-cpu").load(file.SerializeToString(), threads=1)(image.numpy())
    expected = simulated(quantized, image)
    assert decibels(found, expected, peak=np.sqrt(np.mean(expected**2))) >= 50


def test_weights_whose_integers_are_too_wide_are_refused(tiny_traced: Traced, graph: Graph) -> None:
    statistics = collect(tiny_traced, [torch.rand(1, 3, 16, 16)])
    weight = TensorQuant(8, "dorefa", granularity="channel", signed=True)
    wide = quantize(tiny_traced, mixed(weight, TensorQuant(8), TensorQuant(8)), statistics, Execution(16, False))
    with pytest.raises(PolicyError, match="6 tensors of this policy have more than 8 bits, expected at most 8 for Q/DQ ONNX"):
        write_qdq(graph, wide)


def test_stored_types_follow_the_policy(tiny_traced: Traced, graph: Graph) -> None:
    def types(bits: str) -> dict[str, int]:
        file = write_qdq(graph, network(tiny_traced, bits))
        return {tensor.name: tensor.data_type for tensor in file.graph.initializer}

    eight = types("8/8/8")
    assert eight["body.0.conv1.weight.integer"] == TensorProto.INT8
    assert eight["body.0.conv1.bias.integer"] == TensorProto.INT32
    assert types("5/8/8")["body.0.conv1.weight.integer"] == TensorProto.INT8
    assert types("4/8/8")["body.0.conv1.weight.integer"] == TensorProto.INT4
    assert types("2/8/8")["body.0.conv1.weight.integer"] == TensorProto.INT4
    assert "body.0.conv1.weight" not in eight
    assert types("16/16/32")["body.0.conv1.weight.float16"] == TensorProto.FLOAT16
    assert types("32/32/32")["body.0.conv1.weight"] == TensorProto.FLOAT


def test_narrow_activations_are_clipped(tiny_traced: Traced, graph: Graph) -> None:
    def clips(bits: str) -> int:
        return sum(node.op_type == "Clip" for node in write_qdq(graph, network(tiny_traced, bits)).graph.node)

    assert clips("8/8/8") == 0
    assert clips("8/4/8") == 5  # every layer input but the image


def test_the_file_holds_no_marks_and_no_paths_of_this_machine(tiny_traced: Traced, graph: Graph) -> None:
    file = write_qdq(graph, network(tiny_traced, "4/8/8"))
    assert {node.domain for node in file.graph.node} == {""}
    assert b"site-packages" not in file.SerializeToString()
    assert str(Path.cwd()).encode() not in file.SerializeToString()
    dims = [dim.dim_param for dim in file.graph.input[0].type.tensor_type.shape.dim]
    assert dims[2:] == ["height", "width"]


def test_payload_is_the_sum_of_the_tensors(tiny_traced: Traced, graph: Graph) -> None:
    file = write_qdq(graph, network(tiny_traced, "8/8/8"))
    sizes = {TensorProto.FLOAT: 4, TensorProto.INT32: 4, TensorProto.INT8: 1, TensorProto.UINT8: 1, TensorProto.INT64: 8}
    tensors = list(file.graph.initializer)
    tensors += [onnx.helper.get_node_attr_value(node, "value") for node in file.graph.node if node.op_type == "Constant"]
    assert payload_bytes(file) == sum(sizes[tensor.data_type] * int(np.prod(tensor.dims, dtype=int)) for tensor in tensors)
    assert len(file.SerializeToString()) - payload_bytes(file) < 64 * 1024


def test_wide_integers_are_refused(tiny_traced: Traced, graph: Graph) -> None:
    statistics = collect(tiny_traced, [torch.rand(1, 3, 16, 16)])
    wide = quantize(tiny_traced, uniform("12/12/12", INFO.stages), statistics, Execution(16, False))
    with pytest.raises(PolicyError, match="more than 8 bits, expected at most 8 for Q/DQ ONNX"):
        write_qdq(graph, wide)


def test_the_last_layer_runs_before_the_shuffle_only_on_integers(tiny_traced: Traced, graph: Graph) -> None:
    def last(bits: str) -> list[str]:
        return [node.op_type for node in write_qdq(graph, network(tiny_traced, bits)).graph.node][-2:]

    assert last("8/8/8") == ["Conv", "DepthToSpace"]
    assert last("16/16/32")[-1] == "Conv"
