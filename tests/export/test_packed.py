"""The packed package: exactly `size` bytes of tensors, and the same model again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoq.config.policy import Policy, uniform
from autoq.costs.size import packed_bytes
from autoq.errors import InputError
from autoq.export.onnx import Graph, export_graph, for_runtime, weight_widths, write_plain, write_qdq
from autoq.export.packed import pack, payload_bytes, unpack
from autoq.export.widths import pack_bits, unpack_bits
from autoq.graph.quantize import collect, quantize
from autoq.graph.trace import Traced
from autoq.networks import model_info
from autoq.quantizers import QUANTIZERS
from autoq.trial.context import execution_on

INT8 = execution_on("openvino-cpu")
STAGES = model_info("srresnet").stages
POLICIES = (
    "8/8/8",
    "4/4/8",
    "32/32/32",
    "16/16/16",
    "feature_extraction=3/8,body=5/7/8,upsampling=2/8,reconstruction=16/16",
    "feature_extraction=16/16,body=6/6/32,upsampling=8/16,reconstruction=7/3",
)
OVERHEAD = 64 * 1024


@pytest.fixture(scope="module")
def graph(tiny_traced: Traced) -> Graph:
    return export_graph(tiny_traced)


def package(traced: Traced, graph: Graph, policy: Policy) -> tuple[bytes, Graph]:
    """A package and the runtime file of the same network."""
    images = [torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))]
    network = quantize(traced, policy, collect(traced, images), INT8)
    return pack(write_plain(graph, network), weight_widths(network), policy), write_qdq(graph, network)


@pytest.mark.parametrize("bits", POLICIES)
def test_a_package_holds_exactly_size_and_gives_the_file_back(tiny_traced: Traced, graph: Graph, bits: str, tmp_path: Path) -> None:
    policy = uniform(bits, STAGES, "lsq", "mse")
    content, runtime = package(tiny_traced, graph, policy)
    network = quantize(tiny_traced, policy, collect(tiny_traced, [torch.rand(1, 3, 24, 24)]), INT8)
    size = packed_bytes(network.plan)
    assert payload_bytes(content) == size
    assert len(content) - size <= OVERHEAD
    (tmp_path / "model.safetensors").write_bytes(content)
    found = unpack(tmp_path / "model.safetensors")
    assert found.policy == policy
    assert for_runtime(found.model, found.widths).SerializeToString(deterministic=True) == runtime.SerializeToString(
        deterministic=True
    )


@pytest.mark.parametrize("quantizer", sorted(name for name, info in QUANTIZERS.items() if "weight" in info.serves))
def test_every_quantizer_s_weights_come_back(tiny_traced: Traced, graph: Graph, quantizer: str, tmp_path: Path) -> None:
    """Some have integers wider than their widths."""
    widths = [bits for bits in (1, 2, 3, 4) if not QUANTIZERS[quantizer].no_width(bits, "weight", 8)]
    for clip_integers in (False, True):
        wide = uniform(f"{max(widths)}/6/8", STAGES, "lsq", "minmax")
        policy = wide.mapped(lambda role, quant: replace(quant, quantizer=quantizer) if role == "weight" else quant)
        images = [torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))]
        network = quantize(tiny_traced, policy, collect(tiny_traced, images), INT8)
        plain = write_plain(graph, network, clip_integers)
        content = pack(plain, weight_widths(network), policy)
        assert payload_bytes(content) == packed_bytes(network.plan)
        (tmp_path / "model.safetensors").write_bytes(content)
        assert unpack(tmp_path / "model.safetensors").model.SerializeToString(deterministic=True) == plain.SerializeToString(
            deterministic=True
        )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(bits=st.integers(1, 16), signed=st.booleans(), seed=st.integers(0, 9), count=st.integers(0, 40))
def test_integers_come_back(bits: int, signed: bool, seed: int, count: int) -> None:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    values = np.random.default_rng(seed).integers(low, high, count)
    packed = pack_bits(values, bits)
    assert packed.nbytes == -(-count * bits // 8)
    np.testing.assert_array_equal(unpack_bits(packed, bits, count, signed), values)


def test_bits_are_stored_lowest_first() -> None:
    assert pack_bits(np.array([1, -1, 2, -8]), 4).tolist() == [0xF1, 0x82]
    assert pack_bits(np.array([5, 3]), 3).tolist() == [0b011101]


@pytest.mark.parametrize("damage", ["torn", "other", "empty", "missing", "text"])
def test_what_is_no_package_is_said_in_one_line(tiny_traced: Traced, graph: Graph, tmp_path: Path, damage: str) -> None:
    content, runtime = package(tiny_traced, graph, uniform("8/8/8", STAGES))
    file = tmp_path / "model.safetensors"
    if damage != "missing":
        other = runtime.SerializeToString()
        file.write_bytes({"torn": content[:-9], "other": other, "empty": b"", "text": b"hello there, this is text"}[damage])
    with pytest.raises(InputError, match=r"model\.safetensors.*autoq export --format packed"):
        unpack(file)


def test_a_package_needs_no_tensor_of_the_graph(tiny_traced: Traced, graph: Graph) -> None:
    """The graph in the header is the structure alone."""
    content, _ = package(tiny_traced, graph, uniform("32/32/32", STAGES))
    assert onnx.TensorProto.INT64
    assert len(content) - payload_bytes(content) < payload_bytes(content)
