"""What every entry of MODELS must do. Weights are random where none are bundled: every graph is tried at every scale."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from autoq.config.policy import Policy, uniform
from autoq.config.space_file import bundled_space, load_space
from autoq.config.spec import TrialSpec
from autoq.config.structure import Structure
from autoq.costs.latency.measure import entries
from autoq.costs.latency.structure import structure_key
from autoq.costs.latency.table import LatencyTable
from autoq.export.onnx import Graph, export_graph, write_qdq
from autoq.graph.operations import CONCATENATIONS, SUMS
from autoq.graph.trace import Traced, roles_by_stage, trace
from autoq.networks import MODELS, fresh_model
from autoq.networks.vdsr import VDSR
from autoq.study.study import space_facts
from autoq.targets import load_target, why_unusable
from autoq.trial.context import TrialContext, prepare
from autoq.trial.run import run_trial
from tests.conftest import decibels, simulated, small_image

SHALLOW = {
    "esrgan": 1, "esrgan-6": 1, "edsr-full": 1, "imdn": 2, "srresnet-msr": 1, "srresnet": 2, "srgan": 2, "edsr": 2, "wdsr": 2,
}  # fmt: skip
"""Blocks that are enough where only the kind of graph matters."""


def network(name: str, scale: int, blocks: int | None) -> nn.Module:
    """A network with random weights, and batch norms that are not the identity."""
    torch.manual_seed(0)
    model = fresh_model(name, scale, **({"blocks": blocks} if blocks else {}))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 1.5)
            module.running_mean.uniform_(-0.1, 0.1)
    return model.eval()


@pytest.mark.parametrize(("name", "scale"), [(name, scale) for name, info in MODELS.items() for scale in info.scales])
def test_shape_stages_skips_and_float_equivalence(name: str, scale: int) -> None:
    info = MODELS[name]
    model = network(name, scale, SHALLOW.get(name))
    image = torch.rand(1, 3, 13, 19)
    traced = trace(model, info.patterns)  # every layer is in exactly one stage, or this raises
    with torch.no_grad():
        expected = model(image)
        torch.testing.assert_close(traced.module(image), expected, rtol=0, atol=1e-5)
    assert expected.shape == (1, 3, 13 * scale, 19 * scale)
    traced_roles = roles_by_stage(traced.sites)
    assert traced_roles == {stage: tuple(roles) for stage, roles in info.stages.items()}, f"the graph has {traced_roles}"
    assert joins(traced) == {site.node for site in traced.sites if site.role == "skip"}


def joins(traced: Traced) -> set[str]:
    """Every node that adds or concatenates two tensors that depend on the image."""
    return {
        node.name
        for node in traced.module.graph.nodes
        if node.target in (SUMS | CONCATENATIONS) and sum(before.op != "get_attr" for before in node.all_input_nodes) > 1
    }


@pytest.mark.parametrize("name", MODELS)
def test_8_bit_files_agree_and_a_trial_of_4_bits_completes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One training step; the weights are a file in our own layout, from which the depth is read."""
    monkeypatch.setattr(VDSR, "__init__", functools.partialmethod(VDSR.__init__, layers=6))  # no file says its depth
    info = MODELS[name]
    scale = info.scales[0]
    torch.save(network(name, scale, SHALLOW.get(name)).state_dict(), tmp_path / "weights.pth")
    spec = TrialSpec(
        model=name, scale=scale, weights=tmp_path / "weights.pth", data=small_image(tmp_path / "train", 0, side=24 * scale),
        eval_data=small_image(tmp_path / "eval", 1, side=16 * scale), test_data=small_image(tmp_path / "test", 2, side=8 * scale),
        steps=1, batch=1, patches=1, patch=8,
    )  # fmt: skip
    context = prepare(spec)
    graph = export_graph(context.traced)
    check_8_bit_file(context, graph, uniform("8/8/8", info.stages))
    policy = uniform("4/4/8", info.stages, "lsq", "minmax")
    key = structure_key(context.plan_for(policy))
    table = LatencyTable(
        model=name,
        target=spec.target,
        runtime="",
        frame=(16, 16),
        threads=1,
        machine="",
        entries=entries({key: (Structure(), [1.0])}),
    )
    result = run_trial(context, policy, table, graph)
    assert result.state == "complete", result.reason
    assert result.values["size"] < 0.5 * 4 * sum(p.numel() for p in context.traced.module.parameters())


def check_8_bit_file(context: TrialContext, graph: Graph, policy: Policy) -> None:
    """PTQ is near the float network, all layers are integers, and the runtime computes what the trial evaluates."""
    image = torch.rand(1, 3, 13, 19, generator=torch.Generator().manual_seed(1))
    quantized = context.quantized(policy)
    assert len(quantized.integer_layers) == len(context.traced.layers)
    with torch.no_grad():
        expected, real = simulated(quantized, image), context.traced.module(image).numpy()
    assert 0 < np.mean((expected - real) ** 2) < 1e-2 * max(real.var(), 0.01)
    file = write_qdq(graph, quantized).SerializeToString()
    found = load_target("openvino-cpu").load(file, threads=1)(image.numpy())
    assert found.shape == expected.shape
    assert decibels(found, expected) >= 50
    bfloat16 = "openvino-cpu-bf16"
    if why_unusable(bfloat16) is None:
        assert decibels(load_target(bfloat16).load(file, threads=1)(image.numpy()), expected) >= 40


@pytest.mark.parametrize("name", MODELS)
def test_the_bundled_space_fits(name: str) -> None:
    space = load_space(bundled_space(name), space_facts(name, "openvino-cpu"))
    assert space.size() > 1000
    assert next(space.enumerate()).label
