"""Whether a traced network computes what the user's own does, and where it begins not to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from autoq.errors import InputError
from autoq.graph.capture import capture
from autoq.graph.folding import STANDS_FOR
from autoq.networks.sizes import UNTRACEABLE, one_line
from autoq.networks.wrappers import duplicate

TOLERANCE = 1e-4
"""Root mean square of the difference, of the largest magnitude in the output."""


def difference(found: Any, expected: Any) -> float:
    """Root mean square of the difference of two tensors, as a share of the largest magnitude expected; infinite where it has none.

    What is no finite number in both is equal.
    """
    if not isinstance(found, Tensor) or found.shape != expected.shape:
        return float("inf")
    found, expected = (values.detach().double() for values in (found, expected))
    finite = torch.isfinite(expected)
    if not torch.equal(finite, torch.isfinite(found)):
        return float("inf")
    error = (found - expected)[finite].square().mean().sqrt() if finite.any() else torch.zeros(())
    largest = expected[finite].abs().max() if finite.any() else torch.ones(())
    return float(error / largest.clamp(min=torch.finfo(torch.float32).tiny))


class _Values(fx.Interpreter):
    """Runs a graph and keeps what every node gave, in order of the calls."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.found[n.name] = result.clone() if isinstance(result, Tensor) else result
        return result


@torch.no_grad()
def check_agreement(traced: fx.GraphModule, eager: nn.Module, images: Sequence[Tensor]) -> None:
    """Raise InputError that names the first node which differs where a traced network is not the user's own."""
    name = type(eager).__name__
    with torch.random.fork_rng(devices=[]):
        for image in images:
            expected = _seeded(eager, image, 0)
            try:
                found = _seeded(traced, image, 1)
            except UNTRACEABLE as error:
                raise InputError(
                    f"model {name}: traced by torch.fx, it does not run on an image of {image.shape[3]}x{image.shape[2]} pixels"
                    f" ({one_line(error)}); sizes must be read from tensors in forward"
                ) from error
            error_found = difference(found, expected)
            if error_found <= TOLERANCE:
                continue
            if difference(_seeded(eager, image, 1), expected) > TOLERANCE:
                raise InputError(f"model {name}: two runs on one image differ; give a network without random numbers or memory")
            raise InputError(
                f"model {name}: traced, it differs from itself by {error_found:.1g} of its output's largest value, first at"
                f" '{_first_different(traced, eager, image)}'; autoq does not know what is done there"
            )


def _seeded(network: nn.Module, image: Tensor, seed: int) -> Any:
    torch.manual_seed(seed)
    return network(image.clone())


def _first_different(traced: fx.GraphModule, eager: nn.Module, image: Tensor) -> str:
    """Name of the first node that gives something else: in the captured graph than the user's modules, or in the traced one."""
    calls: dict[str, list[Tensor]] = {}

    def keep(path: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                calls.setdefault(path, []).append(output.clone())

        return hook

    handles = [part.register_forward_hook(keep(path)) for path, part in eager.named_modules() if path]
    _seeded(eager, image, 0)
    for handle in handles:
        handle.remove()
    captured = capture(duplicate(eager))  # before any pass
    values = _Values(captured)
    torch.manual_seed(0)
    values.run(image.clone())
    for node in captured.graph.nodes:
        expected = calls.get(str(node.target), []) if node.op == "call_module" else []
        if expected and difference(values.found[node.name], expected.pop(0)) > TOLERANCE:
            return str(node.name)
    own = _Values(traced)
    torch.manual_seed(0)
    own.run(image.clone())
    for node in traced.graph.nodes:
        before = values.found.get(node.meta.get(STANDS_FOR, node.name))
        found = own.found[node.name]
        if isinstance(before, Tensor) and isinstance(found, Tensor) and difference(found, before) > TOLERANCE:
            return str(node.name)
    return "output"
