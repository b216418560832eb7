"""Rounding of weights for post-training quantization: GPTQ (Frantar et al. 2023), algorithm 1, for convolutions.

curvatures(traced, images)       what the float network's inputs say of every layer, once for all policies
round_weights(quantized, ...)    move the weights of one policy's network onto their grids
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.nn import functional

from autoq.graph.quantize import Quantized
from autoq.graph.trace import Traced
from autoq.quantizers.base import Quantizer

SAMPLES = 8192
"""Positions in the images that a layer's Hessian is computed from."""

BLOCK = 64
"""Columns after which the rest of a weight is updated; it changes the time alone."""

DAMPING = 0.01
"""Added to the diagonal of a layer's Hessian, as a share of its mean (section 3.3)."""


@dataclass(frozen=True)
class Curvature:
    """How the errors of a layer's weight [outputs, inputs x kernel] add up in its outputs.

    Attributes:
        order: Its columns, those of the largest inputs first.
        factor: Upper Cholesky factor of the inverse of H = X X^T in this order, where X are the layer's inputs.
    """

    order: Tensor
    factor: Tensor

    @classmethod
    def of(cls, columns: Tensor) -> Curvature:
        """columns: inputs of the layer [inputs x kernel, samples]."""
        hessian = columns @ columns.T
        diagonal = hessian.diagonal()
        order = torch.argsort(diagonal, descending=True)
        hessian = hessian + torch.diag_embed((DAMPING * diagonal.mean()).clamp(min=1e-12).expand_as(diagonal))
        backwards = order.flip(0)
        lower = torch.linalg.cholesky(hessian[backwards][:, backwards])
        # H = R R^T with the upper triangle R = lower, flipped both ways; so inverse(H) = U^T U with U = inverse(R)
        inverse = torch.linalg.solve_triangular(lower, torch.eye(len(order)), upper=False)
        return cls(order, inverse.flip(0, 1))


@torch.no_grad()
def curvatures(traced: Traced, images: Tensor) -> dict[str, Curvature]:
    """The curvature of every convolution that is neither transposed nor grouped, by its node.

    Args:
        traced: The float network.
        images: Calibration images [n, 3, h, w].
    """
    recorder = _Recorder(traced.module, {layer.node for layer in traced.layers})
    recorder.run(images)
    return recorder.found


class _Recorder(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, layers: set[str]) -> None:
        super().__init__(module)
        self.layers, self.random = layers, torch.Generator().manual_seed(0)
        self.found: dict[str, Curvature] = {}

    def run_node(self, n: fx.Node) -> object:
        if n.name in self.layers and n.target is functional.conv2d:
            (inputs, weight, _, stride, padding, dilation, groups), _ = self.fetch_args_kwargs_from_env(n)
            if groups == 1:
                parts = []
                for image in inputs.float():
                    part = functional.unfold(image[None], weight.shape[2:], dilation, padding, stride)[0]
                    chosen = torch.randperm(part.shape[1], generator=self.random)[: -(-SAMPLES // len(inputs))]
                    parts.append(part[:, chosen])
                self.found[n.name] = Curvature.of(torch.cat(parts, 1))
        return super().run_node(n)


@torch.no_grad()
def round_weights(quantized: Quantized, found: Mapping[str, Curvature]) -> None:
    """Move the weights of a quantized network, in place, onto grid points that keep the layers' outputs.

    Weights without a curvature, and those whose quantizer does not round every value by itself, stay as they are.
    """
    module = quantized.module
    training = module.training
    module.eval()
    for node in module.graph.nodes:
        if node.name in found and node.args[1].op == "call_module":
            quantizer = module.get_submodule(str(node.args[1].target))
            if isinstance(quantizer, Quantizer) and quantizer.elementwise:
                weight = module.get_parameter(str(node.args[1].args[0].target))
                weight.copy_(rounded(weight, found[node.name], quantizer))
    module.train(training)


def rounded(weight: Tensor, curvature: Curvature, quantizer: Quantizer) -> Tensor:
    """A weight [outputs, inputs, h, w] on its quantizer's grid.

    Its columns are rounded one after the other, and each column's error is made up for by the columns that are not rounded yet:
    w <- w - (w_j - q_j) / u_jj * u_j, with the rows u_j of the curvature's factor.
    """
    order, factor = curvature.order, curvature.factor
    rest = weight.reshape(len(weight), -1)[:, order]
    for start in range(0, rest.shape[1], BLOCK):
        stop = min(start + BLOCK, rest.shape[1])
        block, errors = rest[:, start:stop], torch.empty(len(weight), stop - start)
        for column in range(stop - start):
            now = slice(column, column + 1)
            level = quantizer(block[:, now])
            errors[:, now] = (block[:, now] - level) / factor[start + column, start + column]
            block[:, column + 1 :] -= errors[:, now] * factor[start + column, start + column + 1 : stop]
            block[:, now] = level
        rest[:, stop:] -= errors @ factor[start:stop, stop:]
    return rest[:, torch.argsort(order)].reshape(weight.shape)
