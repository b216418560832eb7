"""The QONNX file against the fake-quantized network, in the executor of the package qonnx."""

import dataclasses

import numpy as np
import pytest
import torch

from autoq.config.policy import Policy, uniform
from autoq.errors import PolicyError
from autoq.export.onnx import export_graph
from autoq.export.qonnx import write_qonnx
from autoq.graph.quantize import Execution, Quantized, collect, quantize
from autoq.graph.trace import Traced
from autoq.networks import model_info
from autoq.targets import load_target
from tests.conftest import simulated

STAGES = model_info("srresnet").stages


def network(traced: Traced, policy: Policy, integer_bits: int = 16) -> Quantized:
    statistics = collect(traced, [torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))])
    return quantize(traced, policy, statistics, Execution(integer_bits))


def affine_weights(policy: Policy, granularity: str) -> Policy:
    return policy.mapped(
        lambda role, quant: dataclasses.replace(quant, signed=False, granularity=granularity) if role == "weight" else quant
    )


@pytest.mark.parametrize(
    ("bits", "weights"),
    [
        *((bits, "symmetric") for bits in ("2/2/2", "3/5/8", "4/4/8", "12/12/12", "16/16/16")),
        *((bits, affine) for bits in ("2/2/2", "16/16/16") for affine in ("channel", "tensor")),
    ],
)
def test_any_width_agrees(tiny_traced: Traced, bits: str, weights: str) -> None:
    policy = uniform(bits, STAGES)
    quantized = network(tiny_traced, policy if weights == "symmetric" else affine_weights(policy, weights))
    image = torch.rand(1, 3, 11, 23, generator=torch.Generator().manual_seed(2))
    expected = simulated(quantized, image)
    found = load_target("bits").load(write_qonnx(export_graph(tiny_traced), quantized).SerializeToString(), 1)(image.numpy())
    assert found.shape == expected.shape
    assert np.mean((found - expected) ** 2) < 1e-6


def test_quant_nodes_say_width_sign_and_range(tiny_traced: Traced) -> None:
    file = write_qonnx(export_graph(tiny_traced), network(tiny_traced, uniform("3/5/8", STAGES)))
    constants = {tensor.name: tensor for tensor in file.graph.initializer}
    found = {
        node.name: (
            float(np.frombuffer(constants[node.input[3]].raw_data, np.float32)[0]),
            *(next(each.i for each in node.attribute if each.name == name) for name in ("signed", "narrow")),
        )
        for node in file.graph.node
        if node.op_type == "Quant"
    }
    assert found["body.0.conv1.weight"] == (3.0, 1, 1)
    widths = [value for name, value in found.items() if "weight" not in name]
    assert set(widths) == {(8.0, 0, 0), (5.0, 0, 0)}


def test_float16_weights_are_refused(tiny_traced: Traced) -> None:
    with pytest.raises(PolicyError, match="is stored as float16, expected integers or float32 for QONNX"):
        write_qonnx(export_graph(tiny_traced), network(tiny_traced, uniform("16/16/8", STAGES), integer_bits=8))
