"""No float tensor crosses a layer when the policy says so (FQSR, section 3.2): the network and its file are walked edge by edge."""

from __future__ import annotations

import functools

import pytest
import torch
from onnx import ModelProto, NodeProto
from torch import fx

from autoq.config.policy import uniform
from autoq.costs.operations import costs
from autoq.export.onnx import export_graph, write_qdq
from autoq.graph.operations import CONCATENATIONS, is_activation, moves_pixels, skip_edges
from autoq.graph.quantize import Execution, QuantizationPlan, Quantized, collect, quantize, quantizer_of
from autoq.graph.trace import Traced, nodes_by_name, roles_by_stage, trace
from autoq.networks import fresh_model, model_info
from autoq.quantizers.base import BiasQuantizer

APART, FUSED = Execution(8, fused_sums=False), Execution(8, fused_sums=True)
FRAME = (96, 96)
NETWORKS = {
    "srresnet": {"blocks": 2, "features": 8},
    "esrgan": {"blocks": 1, "features": 8, "growth": 4},
    "imdn": {"blocks": 1, "features": 32},
}
IN_FLOAT: dict[str, set[str]] = {
    "srresnet": set(),
    "esrgan": {"mul"},  # residual scaling of a whole block: a quantized sum times a constant
    "imdn": {"mean", "sub", "square", "add", "sqrt", "mul"},  # channel attention: statistics of a map, and their product with it
}
"""What is computed between two quantizers besides layers, sums, concatenations and activations: nobody's tensor on the way."""

VIEWS = {"split", "getitem"}


@functools.cache
def traced_network(name: str) -> Traced:
    torch.manual_seed(0)
    return trace(fresh_model(name, 4, **NETWORKS[name]).eval(), model_info(name).patterns)


@functools.cache
def fully_quantized(name: str, execution: Execution) -> Quantized:
    traced = traced_network(name)
    policy = uniform("8/8/8", roles_by_stage(traced.sites))
    return quantize(traced, policy, collect(traced, [torch.rand(1, 3, 16, 16)]), execution)


# ---------------------------------------------------------------- the network


def kind(module: fx.GraphModule, node: fx.Node) -> str:
    return str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")


def behind_moves(module: fx.GraphModule, node: fx.Node) -> fx.Node:
    """The node whose values these are, before they were moved about or cut into parts."""
    while moves_pixels(module, node) or kind(module, node) in VIEWS:
        (node,) = node.all_input_nodes
    return node


def floats(network: Quantized, layers: set[str]) -> list[tuple[str, str]]:
    """(reader, tensor) of every edge into a layer, a sum or a concatenation that no quantizer's output comes by."""
    module, found = network.module, []
    for node in module.graph.nodes:
        operands = list(node.args[:2]) if node.name in layers else skip_edges(node)
        found += [
            (node.name, source.name)
            for source in (behind_moves(module, operand) for operand in operands)
            if quantizer_of(module, source) is None
        ]
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_sum_and_concatenation_reads_integers(name: str) -> None:
    traced = traced_network(name)
    layers = {layer.node for layer in traced.layers}
    assert floats(fully_quantized(name, APART), layers) == []

    fused = fully_quantized(name, FUSED)
    for reader, source in floats(fused, layers):
        node = nodes_by_name(fused.module)[source]
        (before,) = node.all_input_nodes if is_activation(fused.module, node) else (node,)
        assert skip_edges(nodes_by_name(fused.module)[reader]), f"{reader} reads {source} in float, and is no sum"
        assert before.name in layers, f"{source} is no accumulator of a layer"
        assert len(node.users) == len(before.users) == 1, f"{source} exists as a tensor"


@pytest.mark.parametrize("name", NETWORKS)
def test_sums_leave_as_integers_and_biases_are_integers(name: str) -> None:
    network = fully_quantized(name, FUSED)
    module, layers = network.module, {layer.node for layer in traced_network(name).layers}
    assert set(network.integer_layers) == layers
    for node in module.graph.nodes:
        if node.name in layers and node.args[2] is not None:
            assert isinstance(module.get_submodule(str(node.args[2].target)), BiasQuantizer), node.name
        elif skip_edges(node) and node.target not in CONCATENATIONS:
            readers = [quantizer_of(module, user) for user in node.users]
            assert None not in readers, f"the sum {node.name} leaves in float"


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_else_is_computed_in_float(name: str) -> None:
    network = fully_quantized(name, FUSED)
    module, layers = network.module, {layer.node for layer in traced_network(name).layers}
    others = set()
    for node in module.graph.nodes:
        computes = node.op not in ("placeholder", "get_attr", "output") and node.name not in layers
        known = is_activation(module, node) or moves_pixels(module, node) or skip_edges(node) or kind(module, node) in VIEWS
        if computes and not known and quantizer_of(module, node) is None:
            quantizes_bias = node.op == "call_module" and isinstance(module.get_submodule(str(node.target)), BiasQuantizer)
            others |= set() if quantizes_bias else {kind(module, node)}
    assert others == IN_FLOAT[name]


def test_a_policy_that_leaves_skips_float_is_found_out() -> None:
    traced = traced_network("srresnet")
    policy = uniform("8/8/32", roles_by_stage(traced.sites))
    network = quantize(traced, policy, collect(traced, [torch.rand(1, 3, 16, 16)]), APART)
    found = floats(network, {layer.node for layer in traced.layers})
    assert len(found) == 2 * sum(bool(skip_edges(node)) for node in network.module.graph.nodes) == 2 * 3


# ---------------------------------------------------------------- the file

MOVES = {"DepthToSpace", "Resize", "Split", "Slice", "Identity"}
ACTIVATIONS = {"PRelu", "LeakyRelu", "Relu"}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_conv_add_and_concat_of_the_file_reads_a_dequantize(name: str) -> None:
    file = write_qdq(export_graph(traced_network(name)), fully_quantized(name, FUSED))
    made_by = {output: node for node in file.graph.node for output in node.output}
    readers = count_readers(file)
    seen = set()
    for node in file.graph.node:
        if node.op_type not in ("Conv", "Add", "Concat"):
            continue
        floats = [source for source in (origin(made_by, name) for name in node.input) if source.op_type != "DequantizeLinear"]
        if node.op_type == "Add" and any(source.op_type in ("Constant", "") for source in floats):
            continue  # with a constant, inside IMDN's attention: no two tensors
        if node.op_type == "Add" and floats:
            (only,) = floats
            accumulators = made_by[only.input[0]] if only.op_type in ACTIVATIONS else only
            assert accumulators.op_type == "Conv", f"{node.name} reads {only.op_type}"
            assert readers[only.output[0]] == readers[accumulators.output[0]] == 1
        else:
            assert not floats, f"{node.name} reads {[source.op_type for source in floats]}"
        seen.add(node.op_type)
    assert seen == ({"Conv", "Add"} if name == "srresnet" else {"Conv", "Add", "Concat"})


def origin(made_by: dict[str, NodeProto], name: str) -> NodeProto:
    """The node whose values a tensor holds, before they were moved about; an empty node for an initializer."""
    node = made_by.get(name, NodeProto())
    while node.op_type in MOVES:
        node = made_by[node.input[0]]
    return node


def count_readers(file: ModelProto) -> dict[str, int]:
    readers: dict[str, int] = {}
    for node in file.graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    return readers


# ---------------------------------------------------------------- what it saves


@pytest.mark.parametrize(
    ("scale", "exact", "skips_float", "full"),
    # bytes a pixel of the image. x2: the long skip, the short one, the trunk and their sum in the body, 64 maps of 32 bits
    # each; all of 8 bits, the upsampling layer is the widest moment: 64 maps in, 256 out. x4: always the second upsampling
    # layer, 4 x 64 maps in and 4 x 256 out, where no skip is alive.
    [(2, 4 * (64 + 256), 4 * 4 * 64, 64 + 256), (4, 4 * 4 * (64 + 256), 4 * (64 + 256), 4 * (64 + 256))],
)
def test_memory_by_liveness(scale: int, exact: int, skips_float: int, full: int) -> None:
    traced = trace(fresh_model("srresnet", scale, blocks=3).eval(), model_info("srresnet").patterns)
    roles = roles_by_stage(traced.sites)
    found = {bits: costs(QuantizationPlan(traced, uniform(bits, roles), FUSED), FRAME) for bits in ("32/32/32", "8/8/32", "8/8/8")}
    pixels = FRAME[0] * FRAME[1]
    assert [each.peak_memory_liveness / pixels for each in found.values()] == [exact, skips_float, full]
    assert exact / full >= 3.9
    assert found["8/8/32"].peak_memory / found["8/8/8"].peak_memory >= 3.9, "at input resolution, where the skips are"
