"""Check that a traced network computes the same output as the user's network, and find the first difference."""

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
"""Largest accepted root mean square error, relative to the largest magnitude of the output."""


def difference(output: Any, expected: Any) -> float:
    """Root mean square error of a tensor relative to the largest expected magnitude.

    Positions that are not finite in both tensors count as equal. Infinite for different shapes or a result that is no tensor.
    """
    if not isinstance(output, Tensor) or output.shape != expected.shape:
        return float("inf")
    output, expected = (values.detach().double() for values in (output, expected))
    finite = torch.isfinite(expected)
    if not torch.equal(finite, torch.isfinite(output)):
        return float("inf")
    error = (output - expected)[finite].square().mean().sqrt() if finite.any() else torch.zeros(())
    largest = expected[finite].abs().max() if finite.any() else torch.ones(())
    return float(error / largest.clamp(min=torch.finfo(torch.float32).tiny))


class _Values(fx.Interpreter):
    """Runs a graph and records the result of every node."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.results: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.results[n.name] = result.clone() if isinstance(result, Tensor) else result
        return result


@torch.no_grad()
def check_agreement(traced: fx.GraphModule, eager: nn.Module, images: Sequence[Tensor]) -> None:
    """Compare a traced network with the eager network on images.

    Raises:
        InputError: The outputs differ (the first different node is named), the traced network fails, or the eager network is
            not deterministic.
    """
    name = type(eager).__name__
    with torch.random.fork_rng(devices=[]):
        for image in images:
            expected = _seeded(eager, image, 0)
            try:
                output = _seeded(traced, image, 1)
            except UNTRACEABLE as error:
                raise InputError(
                    f"model {name}: the traced network fails on an image of {image.shape[3]}x{image.shape[2]} pixels"
                    f" ({one_line(error)}); compute sizes from tensor shapes in forward"
                ) from error
            deviation = difference(output, expected)
            if deviation <= TOLERANCE:
                continue
            if difference(_seeded(eager, image, 1), expected) > TOLERANCE:
                raise InputError(
                    f"model {name}: two runs on the same image differ; remove random operations and internal state from forward"
                )
            raise InputError(
                f"model {name}: the traced network differs from the eager one by {deviation:.1g} of the largest output value, first"
                f" at '{_first_different(traced, eager, image)}'; replace that operation"
            )


def _seeded(network: nn.Module, image: Tensor, seed: int) -> Any:
    torch.manual_seed(seed)
    return network(image.clone())


def _first_different(traced: fx.GraphModule, eager: nn.Module, image: Tensor) -> str:
    """Name of the first node that differs: in the captured graph from the eager modules, or in the traced from the captured."""
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
    captured_values = _Values(captured)
    torch.manual_seed(0)
    captured_values.run(image.clone())
    for node in captured.graph.nodes:
        expected = calls.get(str(node.target), []) if node.op == "call_module" else []
        if expected and difference(captured_values.results[node.name], expected.pop(0)) > TOLERANCE:
            return str(node.name)
    traced_values = _Values(traced)
    torch.manual_seed(0)
    traced_values.run(image.clone())
    for node in traced.graph.nodes:
        before = captured_values.results.get(node.meta.get(STANDS_FOR, node.name))
        after = traced_values.results[node.name]
        if isinstance(before, Tensor) and isinstance(after, Tensor) and difference(after, before) > TOLERANCE:
            return str(node.name)
    return "output"
