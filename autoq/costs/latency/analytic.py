"""Latency that is modelled instead of measured: a network's work in proportion to that of a network of known time.

Ayazoglu 2021 (XLSR), section 2, names the operations that are slow on the NPU of its challenge, without numbers:
element-wise operations, reshapes and transpositions, and skip connections, which swap data with slow memory. The model
counts two things:

moved             bytes of feature maps that all operations read and write; operations that the NPU lacks count more (`slow`).
                  A map that is held while another layer runs is also swapped out and in.
multiplications   of the layers, times the width of their operands in bytes

The paper does not say which of the two limits the known network. The time is the known one times the larger of the two
ratios: no network is assumed to move or to multiply faster than the known one.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import fx, nn

from autoq.costs.operations import Sized
from autoq.graph.operations import CONCATENATIONS, moves_pixels
from autoq.graph.quantize import QuantizationPlan
from autoq.graph.trace import Traced
from autoq.targets.model import LatencyModel

CLIPS = (nn.ReLU, nn.ReLU6, nn.Hardtanh)
CLIP_FUNCTIONS = {F.relu, F.relu6, F.hardtanh, torch.relu, "relu"}
"""Activations that only bound the range, as quantization does anyway: the paper calls its clip very cheap."""

SWAPS = 2
"""Additional moves of a map that is held: out and in."""


def milliseconds(plan: QuantizationPlan, frame: tuple[int, int], model: LatencyModel) -> float:
    """Milliseconds for one image of (width, height) low-resolution pixels.

    Such hardware runs no float. A policy with float stages counts 4 bytes a value there, for comparison with integers.
    """
    moved, multiplications = work(plan, frame, model.slow)
    return model.milliseconds * max(moved / model.moved, multiplications / model.multiplications)


def work(plan: QuantizationPlan, frame: tuple[int, int], slow: float) -> tuple[float, float]:
    """(bytes moved, bytes multiplied) for one image."""
    sized, traced = Sized(plan, frame), plan.traced
    layers = [layer.node for layer in traced.layers]
    multiplications = sum(sized.multiplications(layer) * math.sqrt(sized.operand_bits(layer)) / 8 for layer in layers)
    maps = [node for node in traced.module.graph.nodes if node.op not in ("get_attr", "output")]
    moved = sum(_weight(traced, node, slow) * _moved(sized, node) for node in maps)
    places = [sized.order[sized.nodes[layer]] for layer in layers]
    held = [node for node in maps if _held(sized, node, places)]
    return moved + SWAPS * sum(sized.map_bytes(node) for node in held), multiplications


def _weight(traced: Traced, node: fx.Node, slow: float) -> float:
    """Weight of the bytes that an operation moves; 0 where it moves none of its own."""
    if node.op == "placeholder" or _clips(traced.module, node):
        return 0.0
    plain = node.name in {layer.node for layer in traced.layers} or node.target in CONCATENATIONS
    return 1.0 if plain or moves_pixels(traced.module, node) else slow


def _clips(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(module.get_submodule(str(node.target)), CLIPS)
    return node.target in CLIP_FUNCTIONS


def _moved(sized: Sized, node: fx.Node) -> int:
    """Bytes of the maps that an operation reads and writes."""
    read = [source for source in node.all_input_nodes if source.op != "get_attr"]
    return sum(sized.map_bytes(source) for source in read) + sized.map_bytes(node)


def _held(sized: Sized, node: fx.Node, layers: list[int]) -> bool:
    """Whether a layer runs between the creation of a map and its last use."""
    last = max((sized.order[user] for user in node.users), default=0)
    return any(sized.order[node] < place < last for place in layers)
