"""Download the authors' checkpoints on request (`--weights published`), once, with checksum verification.

The hexadecimal digits in a file name are the first digits of its SHA-256, as published by the authors.
"""

from __future__ import annotations

import re
from pathlib import Path

from autoq.errors import AutoqError, WeightsError
from autoq.system.download import download

REQUEST = "published"
"""The value of `--weights` that requests a download."""

_ESRGAN = "https://github.com/xinntao/Real-ESRGAN/releases/download/v0.1.1/ESRGAN_SRx4_DF2KOST_official-ff704c30.pth"
_EDSR = "https://cv.snu.ac.kr/research/EDSR/models/"

PUBLISHED: dict[tuple[str, int], str] = {
    ("esrgan", 4): _ESRGAN,
    ("edsr", 2): f"{_EDSR}edsr_baseline_x2-1bc95232.pt",
    ("edsr", 3): f"{_EDSR}edsr_baseline_x3-abf2a44e.pt",
    ("edsr", 4): f"{_EDSR}edsr_baseline_x4-6b446fab.pt",
    ("edsr-full", 2): f"{_EDSR}edsr_x2-0edfb8a3.pt",
    ("edsr-full", 3): f"{_EDSR}edsr_x3-ea3ef2c6.pt",
    ("edsr-full", 4): f"{_EDSR}edsr_x4-4f62e9ef.pt",
}


def published_file(model: str, scale: int) -> Path:
    """The path of the authors' checkpoint in torch's home; downloaded if missing.

    Raises:
        WeightsError: No checkpoint is published, or the download fails.
    """
    address = PUBLISHED.get((model, scale))
    if address is None:
        options = ", ".join(f"{name} x{factor}" for name, factor in PUBLISHED)
        raise WeightsError(f"--weights {REQUEST}: no download for {model} x{scale} (available: {options}); type --weights FILE")
    import torch

    path = Path(torch.hub.get_dir()) / "autoq" / address.rpartition("/")[2]
    if not path.is_file():
        digits = re.search(r"-([0-9a-f]{8})\.", path.name)
        try:
            download(address, path, digits[1] if digits else None)
        except AutoqError as error:
            raise WeightsError(str(error)) from error
    return path
