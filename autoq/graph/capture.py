"""Capture a user's network as a torch.fx graph with the image as its only input."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

from autoq.errors import InputError
from autoq.networks.sizes import UNTRACEABLE, one_line
from autoq.networks.wrappers import fold


def capture(model: nn.Module) -> fx.GraphModule:
    """Trace a network with torch.fx; the graph module takes over its modules. Raises InputError if it cannot be traced."""
    name = type(model).__name__
    for reserved in ("code", "graph"):
        if reserved in {*model._parameters, *model._buffers, *model._modules}:
            raise InputError(f"model {name}: attribute '{reserved}' is reserved by torch.fx; rename it")
    fold(model)
    _take_image_alone(model)
    try:
        return fx.GraphModule(model, _Tracer().trace(model), name)
    except UNTRACEABLE as error:
        raise InputError(f"model {name}: torch.fx cannot trace it: {one_line(error)}") from error


class _Proxy(fx.Proxy):
    """Records in-place operators, which fx would treat as new tensors."""

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})


def _in_place(function: Callable[..., Any], name: str) -> Callable[[_Proxy, Any], fx.Proxy]:
    def method(self: _Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {}, name=name)

    return method


for _name in ("add", "sub", "mul", "truediv", "floordiv", "pow"):
    setattr(_Proxy, f"__i{_name}__", _in_place(getattr(operator, f"i{_name}"), _name))


class _Tracer(fx.Tracer):
    """Treats torch's modules as leaves, including subclasses that inherit their forward."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def path_of_module(self, mod: nn.Module) -> str:
        """The path of a module. A module created in forward, such as nn.ReLU()(x), is added to the network."""
        assert self.submodule_paths is not None
        if mod not in self.submodule_paths:
            name = f"made_{len(self.root._modules)}"
            self.root.add_module(name, mod.eval())
            self.submodule_paths[mod] = name
        return super().path_of_module(mod)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        computes_as = type(m).forward.__module__
        plain = computes_as.startswith("torch.nn.modules") and not computes_as.endswith("container")
        return plain or super().is_leaf_module(m, module_qualified_name)


def _take_image_alone(model: nn.Module) -> None:
    """Replace forward by one with the image as its only argument; others keep their defaults, so branches on them are fixed."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)]
    if not positional:
        raise InputError(f"model {type(model).__name__}: forward has no positional argument, expected forward(self, x)")
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = [p.name for p in parameters if p is not positional[0] and p.default is p.empty and p.kind not in variadic]
    if required:
        raise InputError(
            f"model {type(model).__name__}: forward requires '{required[0]}' besides the image; give the argument a default"
        )
    if len(parameters) == 1 and positional[0].kind != positional[0].VAR_POSITIONAL:
        return
    original = type(model).forward

    def forward(self: nn.Module, x: Tensor) -> Any:
        return original(self, x)

    model.__class__ = type(type(model).__name__, (type(model),), {"forward": forward})
