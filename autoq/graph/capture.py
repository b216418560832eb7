"""A user's network as one torch.fx graph of its image: weights as they are computed, other arguments at their defaults."""

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
    """The network's graph; its modules become the graph's. Raises InputError in one line where fx cannot trace it."""
    name = type(model).__name__
    for taken in ("code", "graph"):
        if taken in {*model._parameters, *model._buffers, *model._modules}:
            raise InputError(f"model {name}: torch.fx has an attribute '{taken}' of its own; rename the model's")
    fold(model)
    _take_image_alone(model)
    try:
        return fx.GraphModule(model, _Tracer().trace(model), name)
    except UNTRACEABLE as error:
        raise InputError(f"model {name} cannot be traced by torch.fx: {one_line(error)}") from error


class _Proxy(fx.Proxy):
    """Writes down what Python changes in place, which fx takes for new tensors."""

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})


def _in_place(function: Callable[..., Any], name: str) -> Callable[[_Proxy, Any], fx.Proxy]:
    def method(self: _Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {}, name=name)

    return method


for _name in ("add", "sub", "mul", "truediv", "floordiv", "pow"):
    setattr(_Proxy, f"__i{_name}__", _in_place(getattr(operator, f"i{_name}"), _name))


class _Tracer(fx.Tracer):
    """Keeps torch's modules whole, a user's subclasses that compute as their base does among them."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def path_of_module(self, mod: nn.Module) -> str:
        """Also of a module that forward makes, as nn.ReLU()(x): it becomes one of the network's."""
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
    """Give the model a forward of its image alone: all other arguments have their defaults, so that branches on them are known."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    positional = [
        each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD, each.VAR_POSITIONAL)
    ]
    if not positional:
        raise InputError(f"model {type(model).__name__}: its forward takes no image by position; expected forward(self, x)")
    without = [each.name for each in parameters if each is not positional[0] and each.default is each.empty]
    asked = [
        each for each in without if not any(p.name == each and p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)
    ]
    if asked:
        raise InputError(
            f"model {type(model).__name__}: its forward asks for '{asked[0]}' besides the image; give the argument a default"
        )
    if len(parameters) == 1 and positional[0].kind != positional[0].VAR_POSITIONAL:
        return
    whole = type(model).forward

    def forward(self: nn.Module, x: Tensor) -> Any:
        return whole(self, x)

    model.__class__ = type(type(model).__name__, (type(model),), {"forward": forward})
