"""The packed package: every weight at its own bit width, in one safetensors file.

    pack(model, widths, policy)     pack a Q/DQ model (without rewrites for speed) into bytes
    unpack(file)                    restore the identical model and the policy

The tensors in the file have exactly a trial's `size`: integers packed to their widths, scales, zero points, biases and
float tensors. Tensors that can be derived are computed when unpacking: scales of biases, bounds of narrow activations,
zero points of signed tensors. The header holds the graph without tensors, the policy and the widths.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, numpy_helper
from safetensors import SafetensorError
from safetensors.numpy import load, save

from autoq.config.policy import Policy
from autoq.errors import InputError, PolicyError
from autoq.export.widths import Width, pack_bits, unpack_bits

FORMAT = "autoq packed 1"
GIVE = "give a file written by autoq export --format packed"
HEADER_LENGTH_BYTES = 8


class Packed(NamedTuple):
    """An unpacked package. widths: widths of the integer weights by the names of their initializers."""

    model: ModelProto
    policy: Policy
    widths: dict[str, Width]


def pack(model: ModelProto, widths: Mapping[str, Width], policy: Policy) -> bytes:
    """Pack a Q/DQ model.

    A weight with unevenly spaced levels, whose integers are wider than its width, is stored as indices into its levels.

    Args:
        model: A Q/DQ model, from `write_plain`.
        widths: Widths of its integer weights by the names of their initializers.
        policy: The policy.

    Returns:
        Content of the safetensors file.

    Raises:
        PolicyError: A tensor cannot be derived exactly from others.
    """
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    derived = dict(_derived(model, values))
    for name, recipe in derived.items():
        if not np.array_equal(_derive(recipe, values, values[name].dtype), values[name]):
            raise PolicyError(f"tensor '{name}' cannot be derived from its {recipe['as']}, so it cannot be packed exactly")
    graph = ModelProto()
    graph.CopyFrom(model)
    stored: dict[str, np.ndarray] = {}
    levels: dict[str, list[int]] = {}
    for tensor in graph.graph.initializer:
        name = tensor.name
        if tensor.data_type == onnx.TensorProto.INT64:
            continue  # shapes are part of the graph
        if name in widths:
            integers = values[name]
            if not widths[name].holds(integers):
                distinct, integers = np.unique(integers, return_inverse=True)
                levels[name] = distinct.tolist()
            stored[name] = pack_bits(integers, widths[name].bits)
        elif name not in derived:
            stored[name] = np.atleast_1d(values[name])
        tensor.ClearField("raw_data")
    header = {
        "format": FORMAT,
        "policy": json.dumps(policy.to_dict()),
        "widths": json.dumps(widths),
        "levels": json.dumps(levels),
        "derived": json.dumps(derived),
        "graph": base64.b64encode(zlib.compress(graph.SerializeToString(), 9)).decode(),
    }
    return save(stored, header)


def unpack(file: Path) -> Packed:
    """Read the model and policy of a package. Raises InputError for any other file."""
    try:
        content = file.read_bytes()
        header, stored = _header(content), load(content)
        if header.get("format") != FORMAT:
            raise InputError(f"'{file}' is a safetensors file but not an autoq package; {GIVE}")
        model = ModelProto.FromString(zlib.decompress(base64.b64decode(header["graph"])))
        widths = {name: Width(*width) for name, width in json.loads(header["widths"]).items()}
        _fill(model, stored, widths, *(json.loads(header[name]) for name in ("levels", "derived")))
        return Packed(model, Policy.from_dict(json.loads(header["policy"])), widths)
    except OSError as error:
        raise InputError(f"cannot read '{file}': {error.strerror or error}; {GIVE}") from error
    except (SafetensorError, ValueError, KeyError, zlib.error) as error:
        raise InputError(f"'{file}' is not an autoq package, or is damaged; {GIVE}") from error


def payload_bytes(content: bytes) -> int:
    """Bytes of the tensors in a package, without the header."""
    return len(content) - HEADER_LENGTH_BYTES - int.from_bytes(content[:HEADER_LENGTH_BYTES], "little")


# ---------------------------------------------------------------- derived tensors


def _derived(model: ModelProto, values: Mapping[str, np.ndarray]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Initializers that can be derived from others, each with its recipe."""
    read_by: dict[str, list[NodeProto]] = {}
    made_by = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        for name in node.input:
            read_by.setdefault(name, []).append(node)
    for node in model.graph.node:
        bounds = [name for name in node.input[1:] if name in values] if node.op_type in ("Clip", "Min") else []
        behind = _quantize_linear(read_by.get(node.output[0], []))
        for name in bounds:
            if values[name].dtype != np.float32:
                yield name, {"as": "number", "number": int(values[name])}
            elif behind is not None:
                steps = np.round(values[name] / values[behind.input[1]])
                yield name, {"as": "steps", "scale": behind.input[1], "steps": int(steps)}
        quantizing = node.op_type in ("QuantizeLinear", "DequantizeLinear")
        if quantizing and len(node.input) > 2 and values[node.input[2]].dtype == np.int8:
            yield node.input[2], {"as": "number", "number": int(values[node.input[2]])}
        if node.op_type == "DequantizeLinear" and node.input[0] in values and values[node.input[0]].dtype == np.int32:
            (layer,) = read_by[node.output[0]]
            if layer.op_type == "Add":  # the bias of a MatMul
                layer = next(made_by[name] for name in layer.input if name != node.output[0])
            scales = [_scale_of(name, made_by) for name in layer.input[:2]]
            product = np.broadcast_shapes(*(values[name].shape for name in scales))
            times = values[node.input[1]].size // int(np.prod(product, dtype=np.int64))
            yield node.input[1], {"as": "product", "of": scales, "times": times}


def _scale_of(name: str, made_by: Mapping[str, NodeProto]) -> str:
    """The scale of a quantized tensor, also through operators that only move values (a pixel shuffle)."""
    node = made_by[name]
    while node.op_type != "DequantizeLinear":
        node = made_by[node.input[0]]
    return str(node.input[1])


def _quantize_linear(readers: list[NodeProto]) -> NodeProto | None:
    return next((node for node in readers if node.op_type == "QuantizeLinear"), None)


def _derive(recipe: Mapping[str, Any], values: Mapping[str, np.ndarray], kind: np.dtype[Any]) -> np.ndarray:
    if recipe["as"] == "number":
        return np.asarray(recipe["number"], kind)
    if recipe["as"] == "product":
        first, second = (values[name] for name in recipe["of"])
        product = np.asarray(first * second, kind)
        return np.tile(product, recipe["times"]) if recipe.get("times", 1) > 1 else product
    return np.asarray(np.float32(recipe["steps"]) * values[recipe["scale"]], kind)


# ---------------------------------------------------------------- reading


def _header(content: bytes) -> dict[str, str]:
    length = int.from_bytes(content[:HEADER_LENGTH_BYTES], "little")
    metadata = json.loads(content[HEADER_LENGTH_BYTES : HEADER_LENGTH_BYTES + length]).get("__metadata__", {})
    return metadata if isinstance(metadata, dict) else {}


def _fill(
    model: ModelProto,
    stored: Mapping[str, np.ndarray],
    widths: Mapping[str, Width],
    levels: Mapping[str, list[int]],
    derived: Mapping[str, Mapping[str, Any]],
) -> None:
    """Restore the tensors of a graph, in place."""
    values: dict[str, np.ndarray] = {}
    for tensor in model.graph.initializer:
        kind, shape = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type), tuple(tensor.dims)
        if tensor.name in widths:
            width = widths[tensor.name]
            count = int(np.prod(shape, dtype=np.int64))
            coded = tensor.name in levels
            integers = unpack_bits(stored[tensor.name], width.bits, count, width.signed and not coded)
            integers = np.array(levels[tensor.name])[integers] if coded else integers
            values[tensor.name] = integers.astype(kind).reshape(shape)
        elif tensor.name in stored:
            values[tensor.name] = stored[tensor.name].reshape(shape)
    for tensor in model.graph.initializer:
        name, kind = tensor.name, onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        if name in derived:
            values[name] = _derive(derived[name], values, kind)
        if name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[name], name))
