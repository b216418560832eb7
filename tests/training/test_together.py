"""Two processes that train together against one with the same batches."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, sys
from contextlib import nullcontext
from pathlib import Path

import torch

from autoq.config.policy import uniform
from autoq.config.spec import TrialSpec
from autoq.graph.trace import roles_by_stage
from autoq.training import together
from autoq.training.qat import Training
from autoq.trial.context import prepare

rank, meeting = int(sys.argv[1]), Path(sys.argv[2])
with nullcontext() if rank < 0 else together.joined(meeting, rank, 2, "cpu"):
    context = prepare(TrialSpec(model="espcn", scale=3, steps=4, batch=4, patches=16))
    policy = uniform("4/4/8", roles_by_stage(context.traced.sites), "fqsr", "mse")
    training, losses = Training(context, context.quantized(policy), exact=True), []
    training.advance(4, losses.append)
    total = sum(parameter.double().abs().sum().item() for parameter in training.module.parameters())
    buffers = sum(buffer.double().sum().item() for buffer in training.module.buffers())
    told = together.told(rank)
print(json.dumps({"losses": losses, "damping": training.damping, "total": total, "buffers": buffers, "told": told}))
"""


def test_gradients_losses_and_ranges_are_those_of_all_patches(tmp_path: Path) -> None:
    """FQSR's ranges follow the largest values that a process has seen."""
    meeting = str(tmp_path / "meeting")
    started = [
        subprocess.Popen([sys.executable, "-c", SCRIPT, rank, meeting], stdout=subprocess.PIPE, text=True)
        for rank in ("0", "1", "-1")
    ]
    leader, other, alone = (json.loads(process.communicate(timeout=300)[0]) for process in started)
    assert leader == other, "their networks and ranges are the same bit for bit"
    assert leader["told"] == 0
    assert leader["damping"] == pytest.approx(alone["damping"], rel=1e-3)
    assert leader["losses"] == pytest.approx(alone["losses"], rel=0.02)
    assert leader["total"] == pytest.approx(alone["total"], rel=1e-3)
