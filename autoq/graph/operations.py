"""Classify the nodes of a traced network: layers, sums, concatenations, activations, and operations that move pixels."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import fx, nn

ELEMENTWISE = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.Tanh, nn.Sigmoid, nn.Hardtanh, nn.GELU, nn.SiLU)
"""Activations. With one slope for all channels they commute with pixel shuffles."""

FUNCTIONS = {F.relu, F.relu6, F.leaky_relu, F.prelu, F.hardtanh, F.gelu, F.silu, torch.relu, torch.prelu, torch.tanh, torch.sigmoid}
METHODS = {"relu", "tanh", "sigmoid"}
"""The same activations as functions and as tensor methods."""

LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
LAYER_FUNCTIONS = {F.conv2d, F.conv_transpose2d, F.linear}
"""Functions that layers are lowered to."""

PRODUCTS = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}
SUMS = {operator.add, operator.iadd, torch.add, "add", "add_"}
CONCATENATIONS = {torch.cat, torch.concat}

MAP, FLOATS = "map", "floats"
"""Keys of a node's `meta`: whether its result is a float tensor that depends on the image; whether it is a float tensor."""


def is_map(node: object) -> bool:
    """Whether an argument is a float tensor that depends on the image, unlike sizes, indices and parameters."""
    return isinstance(node, fx.Node) and node.op != "get_attr" and bool(node.meta.get(MAP, True))


def moves_pixels(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node only moves or repeats values: pixel shuffle or unshuffle, or nearest-neighbour interpolation."""
    if node.op == "call_module":
        called = module.get_submodule(str(node.target))
        moves = isinstance(called, (nn.PixelShuffle, nn.PixelUnshuffle))
        return moves or (isinstance(called, nn.Upsample) and called.mode == "nearest")
    if node.target is F.interpolate:
        return node.kwargs.get("mode", "nearest") == "nearest"
    return node.target in (F.pixel_shuffle, F.pixel_unshuffle)


def is_activation(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node is an element-wise activation: a module, a function or a method."""
    if node.op == "call_module":
        return isinstance(module.get_submodule(str(node.target)), ELEMENTWISE)
    return node.target in (METHODS if node.op == "call_method" else FUNCTIONS)


def is_image(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a tensor is the image, possibly with moved pixels, and so lies on the grid of 8-bit images."""
    while moves_pixels(module, node) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node.op == "placeholder"


def skip_edges(node: fx.Node) -> list[fx.Node]:
    """The operands of an element-wise sum or a concatenation; empty for other nodes, weighted sums, and sums of sizes."""
    if not node.meta.get(MAP, True):
        return []
    if node.target in CONCATENATIONS:
        return list(cast(Sequence[fx.Node], node.args[0]))
    if node.op in ("call_function", "call_method") and node.target in SUMS and node.kwargs.get("alpha", 1) == 1:
        operands = [operand for operand in node.args[:2] if isinstance(operand, fx.Node) and is_map(operand)]
        return operands if len(operands) == 2 else []
    return []
