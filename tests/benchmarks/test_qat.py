"""The benchmarks that train, in miniature."""

import csv
from pathlib import Path

import pytest
import torch

from autoq.config.policy import TensorQuant
from autoq.quantizers import QUANTIZERS
from autoq.quantizers.range_estimators import CLIPPINGS, Statistics
from benchmarks import ablation, finetuned, losses, low_bit, qat_gain
from tests.benchmarks.conftest import RunBenchmark
from tests.conftest import small_image


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    images = ["--data", str(small_image(tmp_path / "train", 0)), "--eval-data", str(small_image(tmp_path / "eval", 1))]
    return ["--model", "espcn", "--scale", "3", "--steps", "2", "--batch", "1", "--table", str(tmp_path / "t.csv"), *images]


def test_the_ablation_goes_on_where_it_was_stopped(run_benchmark: RunBenchmark, options: list[str], tmp_path: Path) -> None:
    document, said = run_benchmark(ablation, *options, "--seeds", "2")
    figures = document["figures"]
    assert said.count("dB") == 3 * 2
    lines = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
    psnr = {(line["name"], line["seed"]): float(line["psnr"]) for line in lines}
    gains = [psnr["+ learned interval", seed] - psnr["fixed ranges", seed] for seed in ("0", "1")]
    assert figures["gain_learned interval"] == pytest.approx(sum(gains) / 2, abs=6e-4)
    assert figures["gain_low_SQCL"] <= figures["gain_SQCL"] <= figures["gain_high_SQCL"]
    assert figures["agrees"] == (figures["gain_learned interval"] > 0 and figures["gain_SQCL"] > 0)

    text = (tmp_path / "t.csv").read_text().splitlines()
    (tmp_path / "t.csv").write_text("\n".join(text[:-2]) + "\n")
    again, said = run_benchmark(ablation, *options, "--seeds", "2")
    assert said.count("dB") == 2
    assert again == document


def test_what_qat_gains(run_benchmark: RunBenchmark, options: list[str]) -> None:
    document, said = run_benchmark(qat_gain, *options, "--clippings", "minmax", "mse")
    figures = document["figures"]
    assert said.count("dB") == 1 + 2 * 2 + 2
    assert figures["qat_drop"] == pytest.approx(figures["psnr_float"] - figures["psnr_qat_8/8/8"], abs=2e-3)
    rules = [figures[f"psnr_ptq_{rule}_4/4/8"] for rule in ("minmax", "mse")]
    assert figures["psnr_ptq_4/4/8"] == max(rules)
    assert figures["qat_gain"] == pytest.approx(figures["psnr_qat_4/4/8"] - max(rules), abs=2e-3)


def test_techniques_for_low_bits(run_benchmark: RunBenchmark, options: list[str], tmp_path: Path) -> None:
    before = {*QUANTIZERS}, {*CLIPPINGS}
    document, said = run_benchmark(low_bit, *options, "--seeds", "2", "--bits", "4/4/8")
    assert ({*QUANTIZERS}, {*CLIPPINGS}) == before
    figures = document["figures"]
    assert said.count("dB") == 2 * len(low_bit.TECHNIQUES)
    lines = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
    assert len({line["fidelity"] for line in lines if line["seed"] == "0"}) == len(low_bit.TECHNIQUES), "each does something else"
    for name in low_bit.TECHNIQUES:
        gains = figures[f"4/4/8_{name}_psnr"] - figures["4/4/8_lsq_psnr"]
        assert figures[f"4/4/8_{name}_psnr_gain"] == pytest.approx(gains, abs=2e-3)


def test_weight_clipping_follows_the_percentile_of_the_weights() -> None:
    weights = torch.linspace(-1, 1, 201).reshape(1, -1)
    quantizer = low_bit.WeightClipping(TensorQuant(4, "lsq", "minmax", "tensor", True), torch.tensor([-1.0]), torch.tensor([1.0]))
    quantizer(weights)
    assert quantizer.scale.item() == pytest.approx(1 / 7, rel=1e-3), "it begins with the estimator's range"
    quantizer(weights / 2)
    assert quantizer.scale.item() == pytest.approx(0.5 / 7, rel=1e-3)
    quantizer(torch.cat([weights, torch.tensor([[9.0]])], 1))
    assert quantizer.scale.item() == pytest.approx(1 / 7, rel=2e-2), "one large weight does not count"
    with torch.no_grad():
        quantizer.log_gain.fill_(1.0)
    assert quantizer.scale.item() == pytest.approx(torch.e / 7, rel=2e-2)


def test_two_bounds_are_moved_by_what_they_clip() -> None:
    quantizer = low_bit.TwoBounds(TensorQuant(4, "lsq", "minmax"), torch.tensor([-1.0]), torch.tensor([2.0])).train()
    quantizer(torch.tensor([-5.0, -4.0, 0.3, 1.0, 7.0])).sum().backward()
    grid = [bound.offset.grad / (quantizer.scale * 15) for bound in (quantizer.lower, quantizer.upper)]
    assert [gradient.item() for gradient in grid] == pytest.approx([2.0, 1.0], rel=1e-3)
    x = torch.linspace(-1, 2, 50)
    assert torch.allclose(quantizer(x), quantizer.eval()(x), atol=1e-6)


def test_the_one_sided_range_is_the_best_of_64() -> None:
    sample = torch.randn(2, 500, generator=torch.Generator().manual_seed(0)).abs() ** 2 - 0.2
    low, high = low_bit.one_sided(Statistics.of_tensor(sample, per_channel=True), 3, False)
    assert torch.equal(low, sample.amin(1))
    for row, start, found in zip(sample, low, high, strict=True):
        errors = {}
        for step in range(1, 65):
            end = start + (row.max() - start) * step / 64
            levels = start + torch.arange(8) * (end - start) / 7
            errors[end.item()] = (row[:, None] - levels).abs().amin(1).square().mean().item()
        assert errors[found.item()] == pytest.approx(min(errors.values()), rel=1e-5)


def test_losses_of_a_finetuning(run_benchmark: RunBenchmark, options: list[str], tmp_path: Path) -> None:
    options += ["--batch", "4", "--steps", "5", "--pictures", str(tmp_path / "crops")]
    document, said = run_benchmark(losses, *options)
    assert said.count("espcn-x3 4/4/8 ") == 5
    figures = document["figures"]
    for metric in ("psnr", "fidelity"):
        found = {figures[f"{loss}_{metric}"] for loss in ("output", "originals", "gradient", "frequency", "features")}
        assert len(found) > 3, "each trains otherwise"
        assert figures[f"features_{metric}_gain"] == pytest.approx(
            figures[f"features_{metric}"] - figures[f"output_{metric}"], abs=2e-3
        )
    assert len(list((tmp_path / "crops").glob("espcn-x3 4-4-8 *.png"))) == 5


def test_finetuned_policies_are_judged_on_test_images(run_benchmark: RunBenchmark, tmp_path: Path) -> None:
    images = [f"--{name}={small_image(tmp_path / name, seed)}" for seed, name in enumerate(("data", "eval-data", "test-data"))]
    options = [
        *images, "--states", str(tmp_path / "states"), "--table", str(tmp_path / "t.csv"),
        "--patches", "8", "--steps", "2", "--bits", "4/4/8", "--model", "espcn", "--scale", "3",
    ]  # fmt: skip
    document, said = run_benchmark(finetuned, *options)
    figures = document["figures"]
    assert said.count("dB") == 2
    assert figures["4/4/8_test-data_loss"] == pytest.approx(
        figures["4/4/8_test-data_psnr"] - figures["32/32/32_test-data_psnr"], abs=2e-3
    )
    assert figures["32/32/32_test-data_fidelity"] == 100
    again, said = run_benchmark(finetuned, *options)
    assert (again, said) == (document, "")
    *others, _ = options
    document, said = run_benchmark(finetuned, *others, "3", "--steps", "1")
    assert said.count("dB") == 1, "other steps are another line"
