"""How far a network sees, against what a changed pixel changes."""

from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from autoq.errors import InputError
from autoq.export.geometry import geometry, read_network
from autoq.export.onnx import export_graph
from autoq.graph.trace import trace
from autoq.networks import fresh_model, model_info

IMAGE = [1, 3, "height", "width"]


def model_of(nodes: list[NodeProto], constants: dict[str, np.ndarray], **shapes: Any) -> ModelProto:
    """A graph from `image` to `result`."""
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes.get(name, shape))
        for name, shape in (("image", IMAGE), ("result", [1, 3, None, None]))
    ]
    tensors = [numpy_helper.from_array(values, name) for name, values in constants.items()]
    graph = helper.make_graph(nodes, "made", values[:1], values[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def weight(out: int, into: int, height: int, width: int | None = None) -> np.ndarray:
    """Positive, so that no change cancels out."""
    return np.random.default_rng(0).uniform(0.1, 1, (out, into, height, width or height)).astype(np.float32)


def node(operator: str, *inputs: str, **attributes: Any) -> NodeProto:
    return helper.make_node(operator, list(inputs), ["result"], **attributes)


def resize(mode: str, factor: float, coordinates: str = "half_pixel") -> ModelProto:
    scales = np.array([1, 1, factor, factor], np.float32)
    return model_of(
        [node("Resize", "image", "", "s", mode=mode, coordinate_transformation_mode=coordinates, nearest_mode="floor")],
        {"s": scales},
    )


def branches() -> ModelProto:
    """A 7x7 kernel behind a pixel shuffle beside a 3x3 kernel and an interpolation, joined."""
    nodes = [
        helper.make_node("Conv", ["image", "a"], ["x"], pads=[1, 1, 1, 1]),
        helper.make_node("DepthToSpace", ["x"], ["y"], blocksize=2, mode="CRD"),
        helper.make_node("Conv", ["y", "b"], ["z"], pads=[3, 3, 3, 3]),
        helper.make_node("Resize", ["image", "", "s"], ["large"], mode="nearest"),
        helper.make_node("Concat", ["z", "large"], ["both"], axis=1),
        helper.make_node("Conv", ["both", "c"], ["result"]),
    ]
    scales = np.array([1, 1, 2, 2], np.float32)
    return model_of(nodes, {"a": weight(12, 3, 3), "b": weight(3, 3, 7), "c": weight(3, 6, 1), "s": scales})


def strided() -> ModelProto:
    nodes = [
        helper.make_node("Conv", ["image", "a"], ["x"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("DepthToSpace", ["x"], ["result"], blocksize=2, mode="DCR"),
    ]
    return model_of(nodes, {"a": weight(12, 3, 3)})


CASES = {
    "3x3": model_of([node("Conv", "image", "w", pads=[1, 1, 1, 1])], {"w": weight(3, 3, 3)}),
    "1x5": model_of([node("Conv", "image", "w", pads=[0, 2, 0, 2])], {"w": weight(3, 3, 1, 5)}),
    "dilated": model_of([node("Conv", "image", "w", pads=[6, 6, 6, 6], dilations=[3, 3])], {"w": weight(3, 3, 5)}),
    "uneven padding": model_of([node("Conv", "image", "w", pads=[3, 3, 0, 0])], {"w": weight(3, 3, 4)}),
    "deconvolution": model_of(
        [node("ConvTranspose", "image", "w", strides=[3, 3], pads=[4, 4, 4, 4], output_padding=[2, 2])], {"w": weight(3, 3, 9)}
    ),
    "nearest": resize("nearest", 3, "asymmetric"),
    "linear": resize("linear", 2),
    "cubic": resize("cubic", 4),
    "branches": branches(),
    "strided": strided(),
}


def seen(model: ModelProto, side: int = 40) -> int:
    """Input pixels between an output pixel and the furthest input pixel that changes it, tried one by one."""
    session = onnxruntime.InferenceSession(model.SerializeToString())
    image = np.random.default_rng(1).uniform(0.2, 0.8, (1, 3, side, side)).astype(np.float32)
    (before,) = session.run(None, {"image": image})
    scale, furthest = before.shape[2] / side, 0
    for place in range(side // 2 - 2, side // 2 + 2):
        changed = image.copy()
        changed[:, :, place, place] += 0.2
        (after,) = session.run(None, {"image": changed})
        rows, columns = np.nonzero(np.abs(after - before).sum((0, 1)))
        furthest = max([furthest, *(abs(int(at // scale) - place) for at in (*rows, *columns))])
    return furthest


@pytest.mark.parametrize("name", CASES)
def test_reach_is_what_a_changed_pixel_changes(name: str) -> None:
    found = geometry(read_network(CASES[name].SerializeToString(), name))
    assert found.reach is not None
    assert seen(CASES[name]) <= found.reach <= seen(CASES[name]) + (3 if name in ("linear", "cubic") else 1)
    assert found.grid == (2 if name == "strided" else 1)


def test_srresnet_by_hand() -> None:
    network = fresh_model("srresnet", 4, blocks=2, features=8).eval()
    found = geometry(export_graph_without_marks(network, "srresnet"))
    # 9x9 head 4, 5 layers of 3x3 5, one at x1 and one at x2 1.5, their shuffles .5 and .25, 9x9 tail at x4 1: 12.25
    assert (found.reach, found.grid) == (13, 1)
    # the last shuffle: 8 x 4 channels at twice the side in, 8 at four times the side out, 4 bytes each
    assert found.bytes_per_pixel == (32 * 2**2 + 8 * 4**2) * 4


def export_graph_without_marks(network: Any, name: str) -> ModelProto:
    graph = export_graph(trace(network, model_info(name).patterns))
    for mark in graph.graph.node:
        if mark.op_type == "Site":
            mark.op_type, mark.domain = "Identity", ""
            del mark.attribute[:]
    return graph


def test_the_image_as_a_whole_and_unknown_operators_have_no_reach() -> None:
    pooled = [helper.make_node("GlobalAveragePool", ["image"], ["x"]), node("Mul", "image", "x")]
    sized = model_of([node("Resize", "image", "", "", "n")], {"n": np.array([1, 3, 64, 64], np.int64)})
    corners = resize("linear", 2, "align_corners")
    for model in (model_of(pooled, {}), model_of([node("Softmax", "image", axis=3)], {}), sized, corners):
        found = geometry(model)
        assert found.reach is None
        assert found.grid > 1
        assert found.bytes_per_pixel > 0


def as_int8() -> ModelProto:
    model = model_of([node("Identity", "image")], {})
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.INT8
    return model


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "'net.onnx': not an ONNX file, or damaged"),
        (b"no graph", "not an ONNX file, or damaged"),
        (CASES["3x3"].SerializeToString()[:-40], "not an ONNX file, or damaged"),
        (model_of([node("Identity", "image")], {}, image=[1, 1, None, None], result=[1, 1, None, None]), r"input is float32 \[1, 1, \?, \?\], expected float32 RGB"),
        (model_of([node("Identity", "image")], {}, image=[1, 3, 96, 96]), r"input is float32 \[1, 3, 96, 96\], expected a dynamic height and width"),
        (model_of([node("GlobalAveragePool", "image")], {}, result=[1, 3]), r"output is float32 \[1, 3\], expected float32 RGB"),
        (as_int8(), r"input is int8 \[1, 3, \?, \?\], expected float32 RGB"),
    ],
)  # fmt: skip
def test_files_that_are_no_network_of_images(content: bytes | ModelProto, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_network(content if isinstance(content, bytes) else content.SerializeToString(), "net.onnx")


def test_a_file_that_takes_two_images() -> None:
    model = model_of([node("Add", "image", "other")], {})
    model.graph.input.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, IMAGE))
    with pytest.raises(InputError, match="2 inputs and 1 outputs, expected one image each"):
        read_network(model.SerializeToString(), "net.onnx")
