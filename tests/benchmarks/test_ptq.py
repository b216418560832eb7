"""The optional steps of PTQ on a network whose answers are known, and the table of ptq.py in miniature."""

from pathlib import Path

import torch
from torch import nn

from autoq.graph.trace import trace
from autoq.networks import build_model, model_info
from benchmarks import ptq
from benchmarks.ptq import equalized_network, pairs
from tests.benchmarks.conftest import RunBenchmark
from tests.conftest import small_image

IMAGES = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_equalization_changes_ranges_and_no_output() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.PReLU(), nn.Conv2d(4, 5, 3, padding=1)).eval()
    with torch.no_grad():
        model[0].weight.mul_(torch.tensor([0.1, 1.0, 10.0, 100.0])[:, None, None, None])
    traced = trace(model, {"one": ("0", "2")})
    found = equalized_network(traced)
    one, two = found.module.get_parameter("0.weight"), found.module.get_parameter("2.weight")
    torch.testing.assert_close(one.abs().amax((1, 2, 3)), two.abs().amax((0, 2, 3)))
    with torch.no_grad():
        torch.testing.assert_close(found.module(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-4)
    assert one.abs().amax() < 0.2 * model[0].weight.abs().amax()


def test_only_what_nobody_else_reads_is_paired() -> None:
    traced = trace(build_model("srgan", 4), model_info("srgan").patterns)
    found = [(first.name, second.name) for first, second in pairs(traced)]
    assert found == [(f"body_{block}_conv1", f"body_{block}_conv2") for block in range(16)]


def test_a_table_of_what_the_steps_bring(run_benchmark: RunBenchmark, tmp_path: Path) -> None:
    options = ["--models", "espcn", "--bits", "4/4/8", "--clippings", "minmax", "--table", str(tmp_path / "t.csv")]
    options += ["--data", str(small_image(tmp_path / "train", 0)), "--eval-data", str(small_image(tmp_path / "eval", 1))]
    figures = run_benchmark(ptq, *options)[0]["figures"]
    assert figures["gain espcn 4/4/8 tensor plain"] == 0
    assert len({figures[f"psnr espcn 4/4/8 tensor {name}"] for name in ("plain", "corrected", "dynamic")}) == 3
