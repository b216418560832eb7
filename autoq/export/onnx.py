"""ONNX files with QuantizeLinear / DequantizeLinear (Q/DQ).

    export_graph(traced)             export the float network with every quantization site marked, once per model
    write_plain(graph, quantized)    replace the marks by Q/DQ pairs, or remove them
    for_runtime(model, widths)       rewrite the model to run fast and to store narrow weights in four bits
    write_qdq(graph, quantized)      both

torch exports the float graph. Weights and biases become integer initializers with a DequantizeLinear; activations pass
QuantizeLinear and DequantizeLinear. Widths below 8 bits get a Clip (or Min) before or after QuantizeLinear, so that any
ONNX runtime computes the policy's numbers.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, fx, nn

from autoq.errors import InputError, PolicyError, StudyError
from autoq.export.geometry import MULTIPLE
from autoq.export.nibbles import store_nibbles
from autoq.export.shuffle import move_before_shuffle
from autoq.export.widths import Width
from autoq.graph.quantize import Placed, Quantized, insert_behind, read_from
from autoq.graph.trace import Site, Traced, producer
from autoq.quantizers.base import BiasQuantizer, Float16, Quantizer
from autoq.system.files import atomic_write

Graph: TypeAlias = ModelProto
"""An ONNX model in memory."""

OPSET = 20
SIDE = 24
"""Side of the example input in pixels, rounded up to the network's multiple."""

MARK = "Site"
MARK_DOMAIN = "autoq"
INPUT, OUTPUT = "input", "output"
INTEGER = ".integer"
"""Suffix of the initializer with a parameter's integers."""


class _Mark(nn.Module):
    """An operator that survives the export and holds the name of its site."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.site = site.name

    def forward(self, x: Tensor) -> Tensor:
        marked: Tensor = torch.onnx.ops.symbolic(
            f"{MARK_DOMAIN}::{MARK}", (x,), attrs={"site": self.site}, dtype=x.dtype, shape=x.shape, version=1
        )
        return marked


def export_graph(traced: Traced) -> ModelProto:
    """Export the float network to ONNX, with float32 RGB [1, 3, height, width] input and output and a mark at every site.

    Raises:
        InputError: The exporter does not support an operation, or an operation fixes the size of the image.
    """
    module = copy.deepcopy(traced.module)
    for number, site in enumerate(traced.sites):
        source = producer(module, site)
        path = f"mark_{number}"
        module.add_submodule(path, _Mark(site))
        mark = insert_behind(module, source, path)
        read_from(module, site, mark)
    module.graph.lint()
    module.recompile()
    height, width = torch.export.Dim("height", min=8), torch.export.Dim("width", min=8)
    side = traced.fitted(SIDE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's deprecation warnings about itself
        try:
            program = torch.onnx.export(
                module,
                (torch.rand(1, 3, side, side),),
                dynamo=True,
                dynamic_shapes=({2: height, 3: width},),
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                optimize=False,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            cause, _, _ = str(error.__cause__ or error).strip().splitlines()[0].partition(". See the stack trace")
            raise InputError(f"model: torch.onnx cannot export this network ({cause}); replace that operation") from error
    assert program is not None
    model = program.model_proto
    for part in (model, model.graph, *model.graph.node, *model.graph.input, *model.graph.output, *model.graph.value_info):
        del part.metadata_props[:]  # stack traces with local paths
    del model.graph.value_info[:]
    helper.set_model_props(model, {MULTIPLE: str(traced.multiple)} if traced.multiple > 1 else {})
    for initializer in model.graph.initializer:
        del initializer.metadata_props[:]
    return model


@dataclass
class Writer:
    """Rewrites one marked graph with Q/DQ.

    Attributes:
        module: The quantized graph module.
        of_site: The quantizer at each site, by site name.
        clip_integers: Whether narrow widths are clipped after QuantizeLinear.
        nodes: Nodes written so far.
        initializers: Initializers by name.
        alias: Output of a removed mark -> the tensor that replaces it.
        written: Quantizer -> name of its output.
        clipped: Outputs of quantizers that are narrower than their container.
    """

    module: fx.GraphModule
    of_site: dict[str, Placed]
    clip_integers: bool = False
    nodes: list[NodeProto] = field(default_factory=list)
    initializers: dict[str, TensorProto] = field(default_factory=dict)
    alias: dict[str, str] = field(default_factory=dict)
    written: dict[str, str] = field(default_factory=dict)
    clipped: set[str] = field(default_factory=set)

    def constant(self, name: str, values: np.ndarray) -> str:
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(values, name)
        return name

    def add(self, operator: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def mark(self, node: NodeProto) -> None:
        """Replace a mark by its quantizer's output, or by its own input if the policy leaves it float."""
        source = self.alias.get(node.input[0], node.input[0])
        placed = self.of_site.get(helper.get_node_attr_value(node, "site").decode())
        if placed is None:
            self.alias[node.output[0]] = source
            return
        if placed.quantizer not in self.written:
            write = self.weight if source in self.initializers else self.tensor
            self.written[placed.quantizer] = write(source, placed)
        self.alias[node.output[0]] = self.written[placed.quantizer]

    def weight(self, source: str, placed: Placed) -> str:
        values = self.module.get_parameter(source)
        del self.initializers[source]
        quantizer = self.module.get_submodule(placed.quantizer)
        if isinstance(quantizer, Float16):
            half = self.constant(f"{source}.float16", as_numpy(values.half()))
            return self.add("Cast", [half], source, to=TensorProto.FLOAT)
        assert isinstance(quantizer, Quantizer)
        integers = as_numpy(quantizer.to_integer(values)).astype(_container(quantizer))
        zero_point = None if quantizer.quant.signed else as_numpy(quantizer.zero_point).astype(integers.dtype)
        return self.dequantize(source, integers, quantizer.scale, quantizer.axis, zero_point)

    def bias(self, name: str, values: Tensor, quantizer: BiasQuantizer) -> None:
        self.dequantize(name, as_numpy(quantizer.to_integer(values)), quantizer.scale)

    def dequantize(
        self, name: str, integers: np.ndarray, scale: Tensor, axis: int = 0, zero_point: np.ndarray | None = None
    ) -> str:
        """Store a constant as integers; without a zero point it is zero."""
        shape = (-1,) if scale.numel() > 1 else ()
        inputs = [self.constant(f"{name}{INTEGER}", integers), self.constant(f"{name}.scale", as_numpy(scale.reshape(shape)))]
        if zero_point is not None:
            inputs.append(self.constant(f"{name}.zero_point", zero_point.reshape(shape)))
        return self.add("DequantizeLinear", inputs, name, **({"axis": axis} if shape else {}))

    def tensor(self, source: str, placed: Placed) -> str:
        quantizer = cast(Quantizer, self.module.get_submodule(placed.quantizer))
        container = _container(quantizer)
        name = placed.quantizer.removeprefix("quantizers.")
        scale = self.constant(f"{name}.scale", as_numpy(quantizer.scale.reshape(())))
        limits, shift, value = np.iinfo(container), 0, f"{name}.value"
        narrow = quantizer.qmin > limits.min or quantizer.qmax < limits.max
        if narrow and not self.clip_integers:
            low, high = (
                self.constant(f"{name}.{end}", as_numpy((integer - quantizer.zero_point.reshape(())) * quantizer.scale.reshape(())))
                for end, integer in (("low", quantizer.qmin), ("high", quantizer.qmax))
            )
            if source in self.clipped:
                # OpenVINO would fuse a Clip after a clipped tensor into that tensor's integers and round its bounds to them
                del self.initializers[low]
                shift = limits.min - quantizer.qmin  # QuantizeLinear saturates at the lower bound
                source = self.add("Min", [source, high], f"{name}.clip")
            else:
                source = self.add("Clip", [source, low, high], f"{name}.clip")
            self.clipped.add(value)
        zero_point = self.constant(f"{name}.zero_point", as_numpy(quantizer.zero_point.reshape(()) + shift).astype(container))
        integers = self.add("QuantizeLinear", [source, scale, zero_point], f"{name}.integer")
        if narrow and self.clip_integers:
            low, high = (
                self.constant(f"{name}.{end}", np.array(integer, container))
                for end, integer in (("low", quantizer.qmin), ("high", quantizer.qmax))
            )
            integers = self.add("Clip", [integers, low, high], f"{name}.clip")
        return self.add("DequantizeLinear", [integers, scale, zero_point], value)


def write_qdq(graph: ModelProto, quantized: Quantized, clip_integers: bool = False) -> ModelProto:
    """Write the policy's ONNX file for a runtime. Raises PolicyError as `write_plain`."""
    return for_runtime(write_plain(graph, quantized, clip_integers), weight_widths(quantized))


def for_runtime(model: ModelProto, widths: Mapping[str, Width]) -> ModelProto:
    """Rewrite a Q/DQ model in place: convolutions move before pixel shuffles if faster, narrow weights are stored as INT4.

    Args:
        model: A Q/DQ model.
        widths: Widths of its integer weights by the names of their initializers.

    Returns:
        The model.
    """
    move_before_shuffle(model)
    store_nibbles(model, widths)
    onnx.checker.check_model(model)
    return model


def weight_widths(quantized: Quantized) -> dict[str, Width]:
    """Widths of the integer weights that `write_plain` writes, by the names of their initializers."""
    constants = {node.name: str(node.target) for node in quantized.module.graph.nodes if node.op == "get_attr"}
    return {
        f"{constants[placed.placement.source]}{INTEGER}": Width(placed.placement.quant.bits, placed.placement.quant.signed)
        for placed in quantized.placed
        if placed.placement.source in constants and isinstance(quantized.module.get_submodule(placed.quantizer), Quantizer)
    }


def write_plain(graph: ModelProto, quantized: Quantized, clip_integers: bool = False) -> ModelProto:
    """Write a policy as Q/DQ ONNX.

    Args:
        graph: The marked graph of `export_graph`.
        quantized: The trained network with its quantizers.
        clip_integers: Clip narrow widths after QuantizeLinear instead of before it.

    Raises:
        PolicyError: An integer tensor is wider than 8 bits.
    """
    quantizers = [quantized.module.get_submodule(placed.quantizer) for placed in quantized.placed]
    wide = [quantizer for quantizer in quantizers if isinstance(quantizer, Quantizer) and not _fits(quantizer)]
    if wide:
        raise PolicyError(f"{len(wide)} tensors of this policy have more than 8 bits, expected at most 8 for Q/DQ ONNX")
    writer = Writer(quantized.module, sites_of(quantized), clip_integers)
    return rewrite(graph, quantized, writer, {"": OPSET})


def sites_of(quantized: Quantized) -> dict[str, Placed]:
    """Name of a site -> its quantizer."""
    return {site.name: placed for placed in quantized.placed for site in placed.placement.sites}


def rewrite(graph: ModelProto, quantized: Quantized, writer: Writer, opsets: Mapping[str, int]) -> ModelProto:
    """Fill a marked graph with the trained tensors and let `writer` replace marks and biases."""
    trained = dict(quantized.module.named_parameters())
    for initializer in graph.graph.initializer:
        name = initializer.name
        writer.constant(name, as_numpy(trained[name]) if name in trained else numpy_helper.to_array(initializer))
    biases = dict(_biases(quantized))
    for node in graph.graph.node:
        if node.domain == MARK_DOMAIN:
            writer.mark(node)
            continue
        kept = NodeProto()
        kept.CopyFrom(node)
        for index, name in enumerate(node.input):
            kept.input[index] = writer.alias.get(name, name)
            if name in biases and name in writer.initializers:
                del writer.initializers[name]
                writer.bias(name, quantized.module.get_parameter(name), biases[name])
        writer.nodes.append(kept)
    output = copy.deepcopy(graph.graph.output[0])
    if OUTPUT in writer.alias:
        writer.add("Identity", [writer.alias[OUTPUT]], OUTPUT)
    model = helper.make_model(
        helper.make_graph(writer.nodes, "autoq", list(graph.graph.input), [output], list(writer.initializers.values())),
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in opsets.items()],
        ir_version=min(graph.ir_version, 10),
        producer_name="autoq",
    )
    model.metadata_props.extend(graph.metadata_props)
    return model


def save_graph(graph: ModelProto, path: Path) -> None:
    """Store a marked float graph atomically, for worker processes."""
    with atomic_write(path) as partial:
        onnx.save(graph, partial, format="protobuf")


def load_graph(path: Path) -> ModelProto:
    """Inverse of `save_graph`. Raises StudyError for a damaged file."""
    try:
        return onnx.load(path)
    except DecodeError as error:
        raise StudyError(f"{path}: damaged; remove the file, autoq creates it again") from error


def stored_graph(path: Path, traced: Traced) -> ModelProto:
    """A study's graph from its file; exported where the study came without it. Raises StudyError for a damaged file."""
    return load_graph(path) if path.is_file() else export_graph(traced)


def payload_bytes(model: ModelProto) -> int:
    """Bytes of all tensors in the file: initializers and Constant nodes. Two 4-bit integers share a byte."""
    constants = [node.attribute[0] for node in model.graph.node if node.op_type == "Constant"]
    return sum(map(_tensor_bytes, model.graph.initializer)) + sum(map(_constant_bytes, constants))


def _tensor_bytes(tensor: TensorProto) -> int:
    """Bytes of a tensor's values."""
    values = numpy_helper.to_array(tensor)
    return -(-values.size // 2) if tensor.data_type == TensorProto.INT4 else values.nbytes


def _constant_bytes(attribute: onnx.AttributeProto) -> int:
    """Bytes of a Constant node's value: a tensor, or numbers of its attribute's type."""
    if attribute.name == "value":
        return _tensor_bytes(attribute.t)
    number = np.float32 if attribute.name.startswith("value_float") else np.int64
    return np.asarray(helper.get_attribute_value(attribute), number).nbytes


def _biases(quantized: Quantized) -> Iterator[tuple[str, BiasQuantizer]]:
    for node in quantized.module.graph.nodes:
        if node.op == "call_module":
            quantizer = quantized.module.get_submodule(node.target)
            if isinstance(quantizer, BiasQuantizer):
                yield str(node.args[0].target), quantizer


def _container(quantizer: Quantizer) -> np.dtype[Any]:
    """The integer type that holds a quantizer's levels."""
    return np.dtype(np.int8 if quantizer.quant.signed else np.uint8)


def _fits(quantizer: Quantizer) -> bool:
    """Whether the container holds all levels."""
    limits = np.iinfo(_container(quantizer))
    return bool(limits.min <= quantizer.qmin and quantizer.qmax <= limits.max)


def as_numpy(tensor: Tensor) -> np.ndarray:
    """A detached tensor as a numpy array on the CPU."""
    return tensor.detach().cpu().numpy()
