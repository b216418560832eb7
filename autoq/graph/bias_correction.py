"""Bias correction for post-training quantization: Nagel et al. 2019 (Data-Free Quantization), section 4.2, with images."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx

from autoq.graph.quantize import Quantized
from autoq.graph.trace import Traced


@torch.no_grad()
def channel_means(traced: Traced, images: Tensor) -> dict[str, Tensor]:
    """The channel means of the outputs of a float network's layers, by node; layers whose output is no image have none.

    Args:
        traced: The float network.
        images: Calibration images [n, 3, h, w].
    """
    means = _Means(traced.module, {layer.node for layer in traced.layers})
    means.run(images)
    return means.means


@torch.no_grad()
def correct_biases(quantized: Quantized, expected: Mapping[str, Tensor], images: Tensor) -> None:
    """Move the biases of a quantized network, in place, until every layer's outputs have the float network's channel means.

    b <- b + E[y] - E[y_q], layer by layer in graph order: the outputs y_q come from layers that are corrected already.
    Layers without a bias, or without an expected mean, stay as they are.

    Args:
        quantized: The network.
        expected: The float network's `channel_means` on the same images.
        images: Calibration images [n, 3, h, w].
    """
    training = quantized.module.training
    _Corrected(quantized.module.eval(), expected).run(images)
    quantized.module.train(training)


class _Means(fx.Interpreter):
    """Runs a network and keeps the channel means of the layers' outputs."""

    def __init__(self, module: fx.GraphModule, layers: set[str]) -> None:
        super().__init__(module)
        self.layers, self.means = layers, dict[str, Tensor]()

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        if n.name in self.layers and isinstance(result, Tensor) and result.dim() == 4:
            self.means[n.name] = result.mean((0, 2, 3))
        return result


class _Corrected(_Means):
    """Runs a quantized network and corrects the bias of every layer that has one by the means of the float network."""

    def __init__(self, module: fx.GraphModule, expected: Mapping[str, Tensor]) -> None:
        super().__init__(module, set(expected))
        self.expected = expected

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        bias = n.args[2] if n.name in self.means and len(n.args) > 2 else None
        if bias is None:
            return result
        assert isinstance(result, Tensor)
        while isinstance(bias, fx.Node) and bias.op == "call_module":  # its quantizer
            bias = bias.args[0]
        assert isinstance(bias, fx.Node)
        shift = self.expected[n.name] - self.means[n.name]
        module = self.module
        assert isinstance(module, fx.GraphModule)
        module.get_parameter(str(bias.target)).add_(shift)
        return result + shift[:, None, None]
