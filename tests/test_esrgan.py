"""A whole search over ESRGAN at its full depth, from a file in its authors' layout."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import torch
import yaml

from autoq.models import fresh_model
from tests.conftest import small_image

AUTHORS = (
    (r"head\.", "conv_first."),
    (r"fuse\.", "conv_body."),
    (r"up(\d)\.0\.", r"conv_up\1."),
    (r"tail\.0\.", "conv_hr."),
    (r"tail\.2\.", "conv_last."),
    (r"body\.(\d+)\.blocks\.(\d)\.", lambda match: f"body.{match[1]}.rdb{int(match[2]) + 1}."),
)


def authors_file(path: Path) -> Path:
    """RRDB-23 with random weights under BasicSR's keys."""
    torch.manual_seed(0)
    state = fresh_model("esrgan", 4).state_dict()
    for pattern, replacement in AUTHORS:
        state = {re.sub(f"^{pattern}", replacement, key): value for key, value in state.items()}
    torch.save({"params_ema": state}, path)
    return path


def test_full_depth_runs_a_study_of_four_trials(tmp_path: Path) -> None:
    space = {role: {"bits": 8} for role in ("activation", "skip")} | {"weight": {"bits": [4, 8]}}
    (tmp_path / "space.yaml").write_text(yaml.safe_dump({"roles": space}))
    arguments = [
        "search", "--model", "esrgan", "--weights", str(authors_file(tmp_path / "RRDB.pth")), "--budget", "4", "--steps", "0",
        "--space", str(tmp_path / "space.yaml"), "--study", str(tmp_path / "study"), "--frame", "16x16", "--workers", "1", "--threads", "2",
        "--objectives", "size,latency,psnr", "--data", str(small_image(tmp_path / "train", 0)), "--eval-data", str(small_image(tmp_path / "eval", 1)), "--json",
    ]  # fmt: skip
    code = "from autoq.cli import main; main()"
    environment = {**os.environ, "TORCH_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [trial["state"] for trial in found["trials"]] == ["complete"] * 4
    float_size = found["baselines"]["float"]["size"]
    assert float_size > 60 * 2**20
    assert found["baselines"]["4/4/8"]["size"] < float_size / 7
