"""PSNR of the bundled and of public checkpoints: what `benchmarks/weights.py` prints, on Set5 and Set14."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoq.networks import MODELS, build_model, bundled_record
from benchmarks.weights import bicubic, measure

BUNDLED = [(name, scale) for name, info in MODELS.items() if "-" not in name for scale in info.bundled]
LEAST = {("xlsr", 3): 33.0, ("espcn", 3): 32.3, ("fsrcnn", 3): 32.5, ("srresnet", 4): 31.39}


@pytest.mark.parametrize(("name", "scale"), BUNDLED)
def test_bundled_weights_are_as_good_as_their_record_says(name: str, scale: int, shared: Path) -> None:
    found = measure(build_model(name, scale), scale, shared / "test" / "Set5")
    assert found == pytest.approx(bundled_record(MODELS[name].bundled[scale])["psnr"]["Set5"], abs=0.01)
    assert found >= LEAST.get((name, scale), 0)
    assert found >= bicubic(scale, shared / "test" / "Set5") + 1


@pytest.mark.parametrize(
    ("name", "scale", "file", "images", "psnr"),
    [("srgan", 4, "srgan_5block_x4_leftthomas.pth", "Set5", 30.66), ("xlsr", 3, "xlsr_x3_cxzhou95.pt", "Set14", 29.63)],
)
def test_public_checkpoints_reproduce_their_psnr(name: str, scale: int, file: str, images: str, psnr: float, shared: Path) -> None:
    network = build_model(name, scale, shared / "weights" / file)
    assert measure(network, scale, shared / "test" / images) == pytest.approx(psnr, abs=0.05)
