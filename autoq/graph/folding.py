"""Graph passes: fold batch norms and scalings into layers, and lower layers to functions of (input, weight, bias)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from autoq.graph.operations import ELEMENTWISE, LAYER_FUNCTIONS, LAYERS, PRODUCTS, moves_pixels

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
STANDS_FOR = "stands for"
"""Key of a node's `meta`: the name of the original node with the same values, after another node was merged into this one."""


class ScaleShift(nn.Module):
    """A batch norm that cannot be folded: a scale and a shift per channel."""

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None
        assert variance is not None
        scale = torch.rsqrt(variance.double() + norm.eps)
        scale = scale if norm.weight is None else scale * norm.weight
        shift = -mean * scale if norm.bias is None else norm.bias - mean * scale
        self.weight, self.bias = (nn.Parameter(values.detach().float().reshape(-1, 1, 1)) for values in (scale, shift))


def _replace(node: fx.Node, by: fx.Node) -> None:
    """Replace a node by the node that it was merged into."""
    node.replace_all_uses_with(by)
    by.meta[STANDS_FOR] = node.meta.get(STANDS_FOR, node.name)
    node.graph.erase_node(node)


def fold_batch_norms(module: fx.GraphModule) -> None:
    """Fold batch norms into the convolutions before them (FQSR, equation 6); others become a scale and a shift.

    A norm is folded if it is the only reader of the convolution. If the convolution is called several times, the same norm
    must follow every call. Norms without running statistics do not change.
    """
    modules = dict(module.named_modules())
    norms = {
        node: modules[str(node.target)]
        for node in module.graph.nodes
        if node.op == "call_module" and isinstance(modules[node.target], _BatchNorm) and _has_statistics(modules[node.target])
    }
    kept = {node for node in norms if not _foldable(module, node, norms)}
    for node, norm in norms.items():
        if node in kept:
            continue
        before = node.args[0]
        assert isinstance(before, fx.Node)
        conv = modules[str(before.target)]
        if conv is module.get_submodule(str(before.target)):  # an earlier call may have folded it
            fused = nn.utils.fuse_conv_bn_eval(conv, norm, isinstance(conv, nn.ConvTranspose2d))  # type: ignore[type-var]
            module.set_submodule(str(before.target), fused)
        _replace(node, before)
    for node in kept:
        _scale_and_shift(module, node, modules[str(node.target)])
    module.delete_all_unused_submodules()
    module.recompile()


def _has_statistics(norm: nn.Module) -> bool:
    return isinstance(norm, (nn.BatchNorm2d, nn.SyncBatchNorm)) and norm.running_mean is not None


def _foldable(module: fx.GraphModule, node: fx.Node, norms: dict[fx.Node, nn.Module]) -> bool:
    """Whether a norm can be folded into the convolution before it without affecting other readers."""
    before = node.args[0]
    conv = _called(module, before)
    if not isinstance(conv, CONVOLUTIONS) or not _is_layer(conv) or (isinstance(conv, nn.ConvTranspose2d) and conv.groups > 1):
        return False
    assert isinstance(before, fx.Node)
    calls = [call for call in before.graph.nodes if call.op == "call_module" and call.target == before.target]
    alike = all(norms.get(user) is norms[node] and len(call.users) == 1 for call in calls for user in call.users)
    return alike and not _shared(module, conv, str(before.target))


def _scale_and_shift(module: fx.GraphModule, node: fx.Node, norm: nn.Module) -> None:
    path = str(node.target)
    if not isinstance(module.get_submodule(path), ScaleShift):
        assert isinstance(norm, _BatchNorm)
        module.set_submodule(path, ScaleShift(norm))
    with module.graph.inserting_before(node):
        scaled = module.graph.call_function(torch.mul, (node.args[0], module.graph.get_attr(f"{path}.weight")))
        shift = module.graph.get_attr(f"{path}.bias")
    node.op, node.target, node.args = "call_function", torch.add, (scaled, shift)


def _called(module: fx.GraphModule, node: object) -> nn.Module | None:
    """The module that a node calls with a single argument; None for other nodes and modules with hooks."""
    if not isinstance(node, fx.Node) or node.op != "call_module" or len(node.args) != 1 or node.kwargs:
        return None
    called = module.get_submodule(str(node.target))
    return None if called._forward_hooks or called._forward_pre_hooks else called


def _is_layer(module: nn.Module | None) -> bool:
    """Whether a module is a convolution or linear layer whose weight and bias are parameters; others stay in float."""
    parameters = {} if module is None else module._parameters
    if not isinstance(module, LAYERS) or parameters.get("weight") is None:
        return False
    return parameters.get("bias") is getattr(module, "bias", None)


def _shared(module: fx.GraphModule, layer: nn.Module, path: str) -> bool:
    """Whether another layer, or the graph itself, also uses a layer's parameters."""
    ids = {id(parameter) for parameter in layer.parameters()}
    others = [part for name, part in module.named_modules() if name != path and part is not layer]
    tied = any(id(parameter) in ids for part in others for parameter in part.parameters(recurse=False))
    read = any(id(_parameter(module, node)) in ids for node in module.graph.find_nodes(op="get_attr"))
    return tied or read


def _parameter(module: fx.GraphModule, node: object) -> nn.Parameter | None:
    """The parameter that a node reads."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    home, _, name = str(node.target).rpartition(".")
    return module.get_submodule(home)._parameters.get(name)


def fold_scalings(module: fx.GraphModule) -> None:
    """Fold multiplications by a constant (residual scaling) into the layer before them, if they are its only reader."""
    for node in list(module.graph.nodes):
        if node.target not in PRODUCTS or len(node.args) != 2:
            continue
        (source, factor) = node.args if isinstance(node.args[0], fx.Node) else node.args[::-1]
        layer = _called(module, source)
        if layer is None or not _is_layer(layer) or not isinstance(factor, (int, float)):
            continue
        called = sum(other.op == "call_module" and other.target == source.target for other in module.graph.nodes)
        if len(source.users) > 1 or called > 1 or _shared(module, layer, source.target):
            continue
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.mul_(factor)
        _replace(node, source)
    module.recompile()


def delay_pixel_shuffles(module: fx.GraphModule) -> None:
    """Swap a pixel shuffle with the activation that is its only reader.

    The activation then directly follows the convolution, and the shuffle can move integers instead of floats.
    """
    modules = dict(module.named_modules())
    for node in module.graph.nodes:
        activation = modules.get(node.target) if node.op == "call_module" else None
        if not isinstance(activation, ELEMENTWISE) or getattr(activation, "num_parameters", 1) != 1:
            continue
        shuffle = node.args[0]
        if moves_pixels(module, shuffle) and len(shuffle.users) == 1:
            node.replace_all_uses_with(shuffle)
            node.update_arg(0, shuffle.args[0])
            shuffle.update_arg(0, node)
            node.append(shuffle)
            shuffle.meta[STANDS_FOR] = node.meta.pop(STANDS_FOR, node.name)
            node.meta[STANDS_FOR] = ""
    module.graph.lint()
    module.recompile()


# ---------------------------------------------------------------- layers


def wrapped(values: Tensor, pads: Sequence[int]) -> Tensor:
    """Circular padding of [n, c, h, w] by (left, right, top, bottom) pixels, with slices: few runtimes support that mode."""
    left, right, top, bottom = pads
    height, width = values.shape[2:]
    wide = torch.cat([values[..., width - left :], values, values[..., :right]], 3)
    return torch.cat([wide[:, :, height - top :], wide, wide[:, :, :bottom]], 2)


def wrap_by_slices(module: fx.GraphModule) -> None:
    """Replace circular padding, as functions or modules, by slices and concatenations."""
    for node in module.graph.nodes:
        called = _called(module, node)
        if isinstance(called, nn.CircularPad2d):
            node.op, node.target, node.args = "call_function", wrapped, (node.args[0], tuple(called.padding))
        elif node.target is F.pad and "circular" in (*node.args[2:], *node.kwargs.values()):
            pads = node.kwargs.get("pad", node.args[1] if len(node.args) > 1 else ())
            if len(pads) == 4:
                node.target, node.args, node.kwargs = wrapped, (node.kwargs.get("input", node.args[0]), pads), {}
    module.recompile()


def lower_layers(module: fx.GraphModule) -> dict[str, str]:
    """Replace layer modules by functions of (input, weight, bias), so that weights become edges of the graph.

    A parameter shared by several layers keeps one name. Direct calls of these functions with parameters become layers, too.

    Returns:
        fx node name -> module path, or the path of the parameter if no module owns it.
    """
    wrap_by_slices(module)
    tensors = _Tensors(module)
    paths: dict[str, str] = {}
    for node in list(module.graph.nodes):
        layer = _called(module, node)
        if layer is not None and _is_layer(layer):
            paths[node.name] = str(node.target)
            weight = tensors.read(node, layer._parameters["weight"], isinstance(layer, nn.ConvTranspose2d))
            bias = tensors.read_alone(node, layer._parameters["bias"])
            function, options = _function(layer)
            node.args = (_padded(node, layer), weight, bias, *options)
            node.op, node.target, node.kwargs = "call_function", function, {}
        elif node.target in LAYER_FUNCTIONS and (call := _functional(module, node)) is not None:
            path, weight_values, bias_values, arguments = call
            paths[node.name] = path
            weight = tensors.read(node, weight_values, node.target is F.conv_transpose2d)
            bias = tensors.read_alone(node, bias_values)
            node.args, node.kwargs = (arguments[0], weight, bias, *arguments[1:]), {}
    _drop_unread(module)
    module.graph.lint()
    module.recompile()
    return paths


class _Tensors:
    """Creates nodes for the parameters of layers.

    A weight has one node for all layers and calls that share it, or two if a convolution and a transposed convolution share
    it, as their output channels lie along different axes. A bias has one node per call, because its integers depend on the
    scale of the call's input.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.names = {id(parameter): name for name, parameter in module.named_parameters()}
        self.nodes: dict[tuple[int, bool], fx.Node] = {}
        self.calls: dict[int, int] = {}

    def read(self, reader: fx.Node, parameter: nn.Parameter | None, transposed: bool = False) -> fx.Node:
        assert parameter is not None
        key = (id(parameter), transposed)
        if key not in self.nodes:
            twice = (id(parameter), not transposed) in self.nodes
            self.nodes[key] = self._node(reader, parameter, "_transposed" if twice else "")
        return self.nodes[key]

    def read_alone(self, reader: fx.Node, parameter: nn.Parameter | None) -> fx.Node | None:
        if parameter is None:
            return None
        self.calls[id(parameter)] = number = self.calls.get(id(parameter), 0) + 1
        return self._node(reader, parameter, f"_{number}" if number > 1 else "")

    def _node(self, reader: fx.Node, parameter: nn.Parameter, suffix: str) -> fx.Node:
        """Insert a node before a reader: of the parameter, or, with a suffix, of a copy of it."""
        name = f"{self.names[id(parameter)]}{suffix}"
        if suffix:
            owner, _, attribute = name.rpartition(".")
            self.module.get_submodule(owner).register_parameter(attribute, nn.Parameter(parameter.detach().clone()))
        with self.module.graph.inserting_before(reader):
            return self.module.graph.get_attr(name)


def _drop_unread(module: fx.GraphModule) -> None:
    """Remove parameters and buffers that neither the graph nor a called module reads."""
    read = {str(node.target) for node in module.graph.find_nodes(op="get_attr")}
    called = {str(node.target) for node in module.graph.find_nodes(op="call_module")}
    for path, part in module.named_modules():
        if any(path == target or path.startswith(f"{target}.") for target in called):
            continue
        for held in (part._parameters, part._buffers):
            for name in [name for name in held if f"{path}.{name}".removeprefix(".") not in read]:
                held[name] = None


def _function(layer: nn.Module) -> tuple[Callable[..., Tensor], tuple[Any, ...]]:
    """The function of a layer, and its options."""
    if isinstance(layer, nn.Linear):
        return F.linear, ()
    if isinstance(layer, nn.ConvTranspose2d):
        return F.conv_transpose2d, (layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation)
    assert isinstance(layer, nn.Conv2d)
    return F.conv2d, (layer.stride, (0, 0) if _needs_pad(layer) else layer.padding, layer.dilation, layer.groups)


def _needs_pad(layer: nn.Module) -> bool:
    """Whether a layer needs a separate padding operation: another mode than zeros, or `same`."""
    return isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str))


def _padded(node: fx.Node, layer: nn.Module) -> Any:
    """A layer's input, after a separate padding operation if it needs one."""
    if not _needs_pad(layer) or not any(layer._reversed_padding_repeated_twice):  # type: ignore[arg-type]
        return node.args[0]
    assert isinstance(layer, nn.Conv2d)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    pads = tuple(layer._reversed_padding_repeated_twice)
    with node.graph.inserting_before(node):
        if mode == "circular":
            return node.graph.call_function(wrapped, (node.args[0], pads))
        return node.graph.call_function(F.pad, (node.args[0], pads), {"mode": mode})


OPTIONS = {
    F.linear: (),
    F.conv2d: (("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1)),
    F.conv_transpose2d: (("stride", 1), ("padding", 0), ("output_padding", 0), ("groups", 1), ("dilation", 1)),
}
"""Arguments of these functions after (input, weight, bias), with defaults."""


def _functional(module: fx.GraphModule, node: fx.Node) -> tuple[str, nn.Parameter, nn.Parameter | None, tuple[Any, ...]] | None:
    """(path, weight, bias, input and options) of a call with parameters; None if weight or bias is computed or a buffer."""
    options: tuple[tuple[str, int], ...] = OPTIONS[node.target]  # type: ignore[index]
    names = ("input", "weight", "bias", *(name for name, _ in options))
    given: dict[str, Any] = dict(options) | dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    weight, bias = _parameter(module, given["weight"]), _parameter(module, given.get("bias"))
    if weight is None or (bias is None and given.get("bias") is not None):
        return None
    path = str(given["weight"].target).removesuffix(".weight")
    return path, weight, bias, (given["input"], *(given[name] for name, _ in options))
