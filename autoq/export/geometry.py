"""The receptive field and scale of an ONNX file, derived from its graph.

An output pixel depends on the input pixels below it and on `reach` more on every side: the sum over the kernels on the
longest path, in input pixels. A tile with a margin of `reach` therefore gives the same pixels as the full image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from autoq.errors import InputError

FLOAT_BYTES = 4
IMAGES: dict[int, str] = {TensorProto.FLOAT: "float32", TensorProto.UINT8: "uint8"}
"""Accepted data types of images; input and output must have the same type."""

MULTIPLE = "multiple"
"""Metadata key: the number that height and width must be multiples of, if it is not 1."""

ASK = "give an .onnx file exported by autoq"

POINTWISE = {
    "Abs", "Add", "Cast", "CastLike", "Clip", "Concat", "DequantizeLinear", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid",
    "HardSwish", "Identity", "LeakyRelu", "Log", "Max", "Min", "Mish", "Mul", "Neg", "Pow", "PRelu", "QuantizeLinear",
    "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Softplus", "Sqrt", "Sub", "Sum", "Tanh",
}  # fmt: skip
"""Operators that do not mix pixels; `Concat` along channels only."""

READS = {"Shape": 0, "CastLike": 1}
"""Number of inputs whose values matter, for operators that ignore the values of some inputs."""

TAPS = {"nearest": 1, "linear": 2, "cubic": 3}
"""Upper bound on the reach of `Resize` interpolation, in pixels."""

RESIZES = {"half_pixel", "pytorch_half_pixel", "asymmetric"}
"""Coordinate transformations that do not depend on the image's size."""

UNKNOWN_GRID = 8
"""Tile grid of an unknown network: tiles stay aligned after three strides of 2."""

UNKNOWN_BYTES = 2 * 64 * 4**2 * FLOAT_BYTES
"""Bytes per input pixel of an unknown network: 64 channels at x4, read and written, as in SRResNet."""


@dataclass(frozen=True)
class Geometry:
    """Geometry of a network.

    Attributes:
        reach: Input pixels on every side that an output pixel depends on; None if unbounded or unknown.
        grid: Tiles must start at multiples of this.
        bytes_per_pixel: Most bytes per input pixel that an operator reads and writes, as float32.
        multiple: Height and width must be multiples of this.
    """

    reach: int | None
    grid: int
    bytes_per_pixel: int
    multiple: int = 1


@dataclass(frozen=True)
class _Span:
    """A tensor along one axis: pixels per input pixel, and the reach before and after a pixel in input pixels."""

    scale: Fraction = Fraction(1)
    before: Fraction = Fraction(0)
    after: Fraction = Fraction(0)

    def seeing(self, before: int | Fraction, after: int | Fraction) -> _Span:
        """Extend the reach by pixels of this tensor."""
        return replace(self, before=self.before + Fraction(before) / self.scale, after=self.after + Fraction(after) / self.scale)


class _Unknown(Exception):
    """An operator has no finite reach, or is not in the tables."""


def read_network(content: bytes, name: str) -> ModelProto:
    """Parse an ONNX file and check that it maps an RGB image to an RGB image. Raises InputError if not."""
    try:
        model = onnx.load_model_from_string(content)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise InputError(f"'{name}': not an ONNX file, or damaged; {ASK}") from error
    fed, outputs = _fed(model), model.graph.output
    if len(fed) != 1 or len(outputs) != 1:
        raise InputError(f"'{name}': {len(fed)} inputs and {len(outputs)} outputs, expected one image each; {ASK}")
    given = fed[0].type.tensor_type.elem_type
    wanted = given if given in IMAGES else TensorProto.FLOAT
    for kind, value in (("input", fed[0]), ("output", outputs[0])):
        shape = _shape(value)
        if value.type.tensor_type.elem_type != wanted or len(shape) != 4 or shape[1] not in (3, None):
            raise InputError(f"'{name}': {kind} is {_described(value)}, expected {IMAGES[wanted]} RGB [1, 3, height, width]; {ASK}")
    if any(shape is not None for shape in _shape(fed[0])[2:]):
        raise InputError(f"'{name}': input is {_described(fed[0])}, expected a dynamic height and width; {ASK}")
    return model


def geometry(model: ModelProto) -> Geometry:
    """Derive the geometry of a network from its graph. `reach` is None if an operator's reach is unknown."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    shapes = {value.name: _shape(value) for value in (*graph.value_info, *graph.input, *graph.output)}
    shapes |= {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer if len(tensor.dims) == 1}
    constants |= {node.output[0]: _numbers(node.attribute[0]) for node in graph.node if node.op_type == "Constant"}
    fed = _fed(model)[0].name
    spans = {fed: (_Span(), _Span())}  # only tensors that depend on the image
    multiple = next((int(entry.value) for entry in model.metadata_props if entry.key == MULTIPLE), 1)
    grid, heaviest = multiple, 0
    try:
        for node in graph.node:
            read = node.input[: READS.get(node.op_type)]
            seen = [spans[name] for name in read if name in spans]
            if any(attribute.HasField("g") for attribute in node.attribute):
                raise _Unknown  # a subgraph can read any tensor
            if not seen:
                continue
            joined = [_joined([pair[axis] for pair in seen]) for axis in (0, 1)]
            both = [_along(node, axis, span, shapes, constants) for axis, span in enumerate(joined)]
            spans[node.output[0]] = (both[0], both[1])
            grid = math.lcm(grid, *(span.scale.denominator for span in both))
            touched = [*(name for name in read if name in spans), node.output[0]]
            heaviest = max(heaviest, sum(_bytes(shapes.get(name), spans[name]) for name in touched))
        if graph.output[0].name not in spans:
            raise _Unknown
    except _Unknown:
        return Geometry(None, math.lcm(UNKNOWN_GRID, multiple), UNKNOWN_BYTES, multiple)
    sides = [side for span in spans[graph.output[0].name] for side in (span.before, span.after)]
    return Geometry(max(0, *map(math.ceil, sides)), grid, heaviest, multiple)


def _joined(spans: Sequence[_Span]) -> _Span:
    """The union of the spans of several tensors of the same size."""
    if len({span.scale for span in spans}) != 1:
        raise _Unknown
    return _Span(spans[0].scale, max(span.before for span in spans), max(span.after for span in spans))


Shapes = dict[str, list[int | None]]
Constants = dict[str, np.ndarray]


def _along(node: NodeProto, axis: int, span: _Span, shapes: Shapes, constants: Constants) -> _Span:
    """The span of a node's output along an axis: 0 is height, 1 is width."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in {*POINTWISE, *MIXING}:
        raise _Unknown
    if node.op_type in POINTWISE:
        if node.op_type == "Concat" and helper.get_node_attr_value(node, "axis") != 1:
            raise _Unknown
        return span
    return MIXING[node.op_type](node, axis, span, shapes, constants)


def _window(node: NodeProto, axis: int, shapes: Shapes) -> tuple[int, int, int]:
    """(dilated kernel size, stride, padding before) of a convolution or pooling along an axis, in pixels."""
    values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if values.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID") or values.get("ceil_mode"):
        raise _Unknown
    size = values["kernel_shape"][axis] if "kernel_shape" in values else shapes.get(node.input[1], [None] * 4)[2 + axis]
    if size is None:
        raise _Unknown
    extent = (size - 1) * values.get("dilations", (1, 1))[axis] + 1
    return extent, values.get("strides", (1, 1))[axis], values.get("pads", (0, 0, 0, 0))[axis]


def _convolution(node: NodeProto, axis: int, span: _Span, shapes: Shapes, constants: Constants) -> _Span:
    extent, stride, padded = _window(node, axis, shapes)
    seeing = span.seeing(padded, extent - padded - stride)
    return replace(seeing, scale=span.scale / stride)


def _deconvolution(node: NodeProto, axis: int, span: _Span, shapes: Shapes, constants: Constants) -> _Span:
    extent, stride, padded = _window(node, axis, shapes)
    seeing = span.seeing(Fraction(extent - 1 - padded, stride), Fraction(padded + stride - 1, stride))
    return replace(seeing, scale=span.scale * stride)


def _to_space(node: NodeProto, axis: int, span: _Span, shapes: Shapes, constants: Constants) -> _Span:
    block = helper.get_node_attr_value(node, "blocksize")
    return replace(span.seeing(Fraction(block - 1, block), Fraction(block - 1, block)), scale=span.scale * block)


def _to_depth(node: NodeProto, axis: int, span: _Span, shapes: Shapes, constants: Constants) -> _Span:
    return replace(span, scale=span.scale / helper.get_node_attr_value(node, "blocksize"))


def _resize(node: NodeProto, axis: int, span: _Span, shapes: Shapes, constants: Constants) -> _Span:
    values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    mode = values.get("mode", b"nearest").decode()
    scales = constants.get(node.input[2]) if len(node.input) > 2 else None
    coordinates = values.get("coordinate_transformation_mode", b"half_pixel").decode()
    if scales is None or mode not in TAPS or coordinates not in RESIZES:
        raise _Unknown
    factor = float(scales[2 + axis])
    if not factor.is_integer() or factor < 1:
        raise _Unknown
    return replace(span.seeing(TAPS[mode], TAPS[mode]), scale=span.scale * int(factor))


MIXING: dict[str, Callable[[NodeProto, int, _Span, Shapes, Constants], _Span]] = {
    "Conv": _convolution,
    "ConvTranspose": _deconvolution,
    "MaxPool": _convolution,
    "AveragePool": _convolution,
    "DepthToSpace": _to_space,
    "SpaceToDepth": _to_depth,
    "Resize": _resize,
}
"""Operators that mix pixels."""


def _bytes(shape: list[int | None] | None, spans: tuple[_Span, _Span]) -> int:
    channels = shape[1] if shape is not None and len(shape) == 4 and shape[1] else 0
    return math.ceil(channels * FLOAT_BYTES * spans[0].scale * spans[1].scale)


def _fed(model: ModelProto) -> list[ValueInfoProto]:
    """The inputs of a run; old files list initializers as inputs, too."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in stored]


def _numbers(attribute: AttributeProto) -> np.ndarray:
    """The value of a Constant node."""
    return numpy_helper.to_array(attribute.t) if attribute.name == "value" else np.asarray(helper.get_attribute_value(attribute))


def _shape(value: ValueInfoProto) -> list[int | None]:
    return [dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim]


def _described(value: ValueInfoProto) -> str:
    kind = (
        helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name if value.type.tensor_type.elem_type else "no tensor"
    )
    sides = ", ".join("?" if side is None else str(side) for side in _shape(value))
    return f"{kind} [{sides}]"
