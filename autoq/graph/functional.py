"""A graph in which nothing is changed in place, and arguments stand where the other passes look for them.

What is changed in place is seen by running the graph once: torch counts the versions of every tensor, and tensors that
share memory say so by their addresses.
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
    """Runs a graph and keeps every node's result, and which operand of a node is another one afterwards."""

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
    """All tensors within a result."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


@torch.no_grad()
def make_functional(module: fx.GraphModule, image: Tensor) -> None:
    """Replace what is changed in place by new tensors, which all later readers of the changed one read.

    Raises InputError where a part of a tensor is changed that is read later as a whole, or by an unknown operation.
    """
    watcher = _Watcher(module)
    watcher.run(image.clone())
    for node, operand in watcher.changed.items():
        nodes = list(module.graph.nodes)
        place = nodes.index(node)
        later = set(nodes[place + 1 :])
        for other in nodes[:place]:
            readers = [user for user in other.users if user in later]
            how = _relation(watcher.results[operand], watcher.results[other]) if readers else "apart"
            if how == "apart":
                continue
            changed = node if how == "same" else _whole(node, operand, other, watcher.results)
            if changed is None:
                raise InputError(
                    f"model {_class(module)}: '{node.name}' changes in place a part of '{other.name}', which '{readers[0].name}'"
                    " reads later; write it as a new tensor"
                )
            for user in readers:
                user.replace_input_with(other, changed)
        _rewrite(module, node)
    module.graph.eliminate_dead_code()
    for made in list(module.graph.nodes):
        _name_arguments(made, watcher.results)
    module.graph.lint()
    module.recompile()


def _whole(node: fx.Node, part: fx.Node, other: fx.Node, results: dict[fx.Node, Any]) -> fx.Node | None:
    """What another tensor is after a node has changed a part of it; None where that part was not taken by an index."""
    if part.target is not operator.getitem or _relation(results[part.args[0]], results[other]) != "same":  # type: ignore[index]
        return None
    with node.graph.inserting_after(node):
        whole = node.graph.call_function(with_item, (other, part.args[1], node))
    results[whole] = results[other]
    return whole


def with_item(values: Tensor, index: Any, item: Any) -> Tensor:
    """A tensor with other values at an index."""
    found = values.clone()
    found[index] = item if isinstance(item, Tensor) else torch.full_like(found[index], item)
    return found


def _relation(changed: Any, other: Any) -> str:
    """Whether what is changed and another result are the `same` memory, `overlaps` or `apart`."""
    for one in tensors(changed):
        for two in tensors(other):
            if one.untyped_storage().data_ptr() != two.untyped_storage().data_ptr():
                continue
            if _address(one) == _address(two) and isinstance(other, Tensor):
                return "same"
            (begin, end), (start, stop) = _extent(one), _extent(two)
            if begin < stop and start < end:
                return "overlaps"
    return "apart"


def _address(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape), tensor.stride()


def _extent(tensor: Tensor) -> tuple[int, int]:
    """First element of the storage, and the one behind the last."""
    begin = int(tensor.storage_offset())
    return begin, begin + 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _rewrite(module: fx.GraphModule, node: fx.Node) -> None:
    """Make a node give a new tensor."""
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
    found = _new_tensor(node)
    if found is None:
        raise InputError(
            f"model {_class(module)}: '{node.name}' changes a tensor in place by {_spelled(node.target)}, which autoq does not know"
            " otherwise; write it as a new tensor"
        )
    node.op, node.target, node.args = found


def _new_tensor(node: fx.Node) -> tuple[str, Any, tuple[Any, ...]] | None:
    """(kind, target, arguments) of the operation that gives a new tensor."""
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
        functions: Iterator[Any] = (getattr(operator, each, None) for each in (plain, f"{plain}_"))
    else:
        functions = (getattr(home, name.removesuffix("_"), None) for home in (torch, F) if name.endswith("_"))
    function = next((each for each in functions if each is not None), None)
    return None if function is None else ("call_function", function, node.args)


def _parameters(function: Any) -> list[str]:
    """Names of what a function takes; none of one that is compiled."""
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
"""Functions whose first argument may be given as `input`."""


def _name_arguments(node: fx.Node, results: dict[fx.Node, Any]) -> None:
    """Tensors in front where they were given by keyword, options of torch's functions by their names, joined tensors in a list."""
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
    """Say of every node whether its result is a float tensor that depends on the image, see `operations.is_map`."""
    _Marker(module).run(image)
    for node in module.graph.nodes:
        del node.meta["depends"]
