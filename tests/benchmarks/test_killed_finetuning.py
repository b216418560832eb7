"""What the benchmark counts, on a finetuning that goes wrong on purpose."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import killed_finetuning

FINETUNING = """
import sys, time
from pathlib import Path

fault, command, *rest = sys.argv[1:]
folder = Path("studies") / (rest[1] if command == "search" else rest[0]) / "finetuned"
if command == "search":
    folder.mkdir(parents=True)
    sys.exit()
state = folder / "a-9-state.pt"
resumed = state.exists()
if fault != "stateless":
    state.write_bytes(b"")
if folder.parent.name != "whole" and not resumed and not (folder / "tried").exists():
    (folder / "tried").touch()
    time.sleep(60)
(folder / "a-3.pt").write_text("2" if fault == "different" and folder.parent.name != "whole" else "1")
state.unlink(missing_ok=True)
"""
"""As much of the commands as is looked at: the finetuning of a copy is slow at first. The first argument: what goes wrong."""


def read(study: Path) -> dict[str, torch.Tensor]:
    """The weight in the text that stands for a file of weights."""
    return {"w": torch.tensor(float((study / "finetuned" / "a-3.pt").read_text()))}


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("none", {"kills": 2, "continued": 2, "different": 0}),
        ("different", {"kills": 2, "continued": 2, "different": 2}),
        ("stateless", {"kills": 2, "continued": 0, "different": 0}),
    ],
)
def test_what_goes_wrong_is_counted(
    fault: str, expected: dict[str, int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Late:
        """Kills when a process has written all that it will."""

        def __init__(self, seed: int) -> None:
            pass

        def uniform(self, low: float, high: float) -> float:
            return high + 0.3

    monkeypatch.setattr(random, "Random", Late)
    monkeypatch.setattr(killed_finetuning, "AUTOQ", [sys.executable, "-S", "-c", FINETUNING, fault])
    monkeypatch.setattr(killed_finetuning, "prepare", lambda folder: None)
    monkeypatch.setattr(killed_finetuning, "weights", read)
    monkeypatch.setattr(sys, "argv", ["killed_finetuning.py", "--kills", "2", "--json"])
    killed_finetuning.main()
    assert json.loads(capsys.readouterr().out)["figures"] == expected


def test_a_command_that_fails_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(killed_finetuning, "AUTOQ", [sys.executable, "-c", "import sys; sys.exit('no such study')"])
    monkeypatch.setattr(killed_finetuning, "prepare", lambda folder: None)
    monkeypatch.setattr(sys, "argv", ["killed_finetuning.py", "--kills", "1"])
    with pytest.raises(RuntimeError, match="no such study"):
        killed_finetuning.main()
