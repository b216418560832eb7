"""Graph passes: replace in-place operations by functional ones, and normalize arguments.

In-place changes are detected by running the graph once: torch counts the versions of every tensor, and addresses show
which tensors share memory.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from autoq.errors import InputError
from autoq.graph.operations import CONCATENATIONS, FLOATS, FUNCTIONS, MAP, SUMS


class _Watcher(fx.Interpreter):
    """Runs a graph and records every node's result, and the operand that a node changes in place."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.results: dict[fx.Node, Any] = {}
        self.changed: dict[fx.Node, fx.Node] = {}

    def run_node(self, n: fx.Node) -> Any:
        before = {source: [t._version for t in tensors(self.results[source])] for source in n.all_input_nodes}
        self.results[n] = result = super().run_node(n)
        for source, versions in before.items():
            if n.op != "output" and versions != [t._version for t in tensors(self.results[source])]:
                self.changed.setdefault(n, source)
        return result


def tensors(value: Any) -> list[Tensor]:
    """All tensors in a nested result."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


@torch.no_grad()
def make_functional(module: fx.GraphModule, image: Tensor) -> None:
    """Replace in-place operations by functional ones and update all later readers.

    Args:
        module: The captured graph; changed in place.
        image: An image [1, 3, h, w] that the network accepts.

    Raises:
        InputError: A view is changed and its base is read later, or an in-place operation has no functional form.
    """
    watcher = _Watcher(module)
    watcher.run(image.clone())
    for node, operand in watcher.changed.items():
        nodes = list(module.graph.nodes)
        position = nodes.index(node)
        later = set(nodes[position + 1 :])
        for other in nodes[:position]:
            readers = [user for user in other.users if user in later]
            relation = _relation(watcher.results[operand], watcher.results[other]) if readers else "disjoint"
            if relation == "disjoint":
                continue
            changed = node if relation == "same" else _updated_base(node, operand, other, watcher.results)
            if changed is None:
                raise InputError(
                    f"model {_class(module)}: '{node.name}' changes a view of '{other.name}' in place, and '{readers[0].name}'"
                    f" reads '{other.name}' later; create a new tensor instead"
                )
            for user in readers:
                user.replace_input_with(other, changed)
        _rewrite(module, node)
    module.graph.eliminate_dead_code()
    for node in list(module.graph.nodes):
        _name_arguments(node, watcher.results)
    module.graph.lint()
    module.recompile()


def _updated_base(node: fx.Node, view: fx.Node, base: fx.Node, results: dict[fx.Node, Any]) -> fx.Node | None:
    """A base tensor after a node changed a view of it; None if the view was not taken by indexing."""
    if view.target is not operator.getitem or _relation(results[view.args[0]], results[base]) != "same":  # type: ignore[index]
        return None
    with node.graph.inserting_after(node):
        updated = node.graph.call_function(with_item, (base, view.args[1], node))
    results[updated] = results[base]
    return updated


def with_item(values: Tensor, index: Any, item: Any) -> Tensor:
    """A copy of a tensor with other values at an index."""
    copy = values.clone()
    copy[index] = item if isinstance(item, Tensor) else torch.full_like(copy[index], item)
    return copy


def _relation(changed: Any, other: Any) -> str:
    """How the memory of a changed tensor relates to another result: `same`, `overlaps` or `disjoint`."""
    for one in tensors(changed):
        for two in tensors(other):
            if one.untyped_storage().data_ptr() != two.untyped_storage().data_ptr():
                continue
            if _address(one) == _address(two) and isinstance(other, Tensor):
                return "same"
            (begin, end), (start, stop) = _extent(one), _extent(two)
            if begin < stop and start < end:
                return "overlaps"
    return "disjoint"


def _address(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape), tensor.stride()


def _extent(tensor: Tensor) -> tuple[int, int]:
    """The range [begin, end) of storage elements that a tensor spans."""
    begin = int(tensor.storage_offset())
    return begin, begin + 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _rewrite(module: fx.GraphModule, node: fx.Node) -> None:
    """Replace an in-place node by its functional form."""
    if node.op == "call_module":
        for part in module.get_submodule(str(node.target)).modules():
            if getattr(part, "inplace", False):
                part.inplace = False  # type: ignore[assignment]
        return
    if node.op == "call_function" and "out" in node.kwargs:
        node.kwargs = {name: value for name, value in node.kwargs.items() if name != "out"}
        return
    if node.op == "call_function" and "inplace" in (signature := _parameters(node.target)):
        kept = zip(signature, node.args, strict=False)
        node.args = tuple(False if name == "inplace" else value for name, value in kept)
        node.kwargs = {name: value for name, value in node.kwargs.items() if name != "inplace"}
        return
    functional = _functional_form(node)
    if functional is None:
        raise InputError(
            f"model {_class(module)}: '{node.name}' changes a tensor in place with {_spelled(node.target)}, which is not supported;"
            " create a new tensor instead"
        )
    node.op, node.target, node.args = functional


def _functional_form(node: fx.Node) -> tuple[str, Any, tuple[Any, ...]] | None:
    """(op, target, arguments) of the functional form of an in-place node; None if there is none."""
    name = _spelled(node.target)
    if node.op == "call_method":
        if name == "copy_":
            return "call_method", "expand_as", (node.args[1], node.args[0])
        if name == "zero_":
            return "call_function", torch.zeros_like, node.args
        if name == "fill_":
            return "call_function", torch.full_like, node.args
        plain = name.removesuffix("_")
        return ("call_method", plain, node.args) if hasattr(Tensor, plain) and plain != name else None
    if node.target is operator.setitem:
        return "call_function", with_item, node.args
    if getattr(operator, name, None) is node.target:
        plain = name.removeprefix("i")
        functions: Iterator[Any] = (getattr(operator, spelling, None) for spelling in (plain, f"{plain}_"))
    else:
        functions = (getattr(namespace, name.removesuffix("_"), None) for namespace in (torch, F) if name.endswith("_"))
    function = next((candidate for candidate in functions if candidate is not None), None)
    return None if function is None else ("call_function", function, node.args)


def _parameters(function: Any) -> list[str]:
    """Names of a function's parameters; empty for a compiled function."""
    try:
        return list(inspect.signature(function).parameters)
    except ValueError:
        return []


def _spelled(target: Any) -> str:
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def _class(module: fx.GraphModule) -> str:
    return type(module).__name__


# ---------------------------------------------------------------- arguments

INPUT_FIRST = {F.pixel_shuffle, F.pixel_unshuffle, *FUNCTIONS}
"""Functions whose first argument can be passed as `input`."""


def _name_arguments(node: fx.Node, results: dict[fx.Node, Any]) -> None:
    """Normalize arguments: tensors positional, options of interpolate by keyword, concatenated tensors as a list."""
    if node.op == "call_module" and not node.args and len(node.kwargs) == 1:
        node.args, node.kwargs = tuple(node.kwargs.values()), {}
    keywords: tuple[str, ...] = ("input",) if node.target in INPUT_FIRST else ()
    if node.target in CONCATENATIONS:
        keywords = ("tensors",)
    elif node.target in SUMS:
        keywords = ("input", "other")
    elif node.target is F.interpolate:
        given = dict(zip(_parameters(node.target), node.args, strict=False)) | dict(node.kwargs)
        node.args, node.kwargs = (given.pop("input"),), given
    given_tensors = tuple(node.kwargs[name] for name in keywords if name in node.kwargs)
    if given_tensors:
        node.kwargs = {name: value for name, value in node.kwargs.items() if name not in keywords}
        node.args = (*node.args, *given_tensors)
    if node.target in CONCATENATIONS and isinstance(node.args[0], fx.Node):
        joined = node.args[0]
        with node.graph.inserting_before(node):
            parts = [node.graph.call_function(operator.getitem, (joined, index)) for index in range(len(results[joined]))]
        node.args = (parts, *node.args[1:])


# ---------------------------------------------------------------- maps


class _Marker(fx.Interpreter):
    """Runs a graph and marks the nodes whose result is a float tensor that depends on the image."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        depends = n.op == "placeholder" or any(source.meta["depends"] for source in n.all_input_nodes)
        n.meta["depends"] = depends
        n.meta[FLOATS] = isinstance(result, Tensor) and result.is_floating_point()
        n.meta[MAP] = depends and n.meta[FLOATS]
        return result


@torch.no_grad()
def mark_maps(module: fx.GraphModule, image: Tensor) -> None:
    """Mark every node whose result is a float tensor that depends on the image, see `operations.is_map`."""
    _Marker(module).run(image)
    for node in module.graph.nodes:
        del node.meta["depends"]
