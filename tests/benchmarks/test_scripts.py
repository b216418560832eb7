"""Every benchmark is a script that runs from any folder and explains itself."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = [path for path in sorted(FOLDER.glob("*.py")) if "__main__" in path.read_text()]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_explains_itself(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the root among Python's paths but for its own doing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script.name, "--help"])
    monkeypatch.setattr(sys, "path", [str(FOLDER), *(path for path in sys.path if path and Path(path) != FOLDER.parent)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 0
    assert "usage: " in capsys.readouterr().out
    siblings = any(line.startswith("from benchmarks") for line in script.read_text().splitlines())
    assert (str(FOLDER.parent) in sys.path) is siblings


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would check for minutes")
def test_the_checks_of_a_gpu_say_where_none_is() -> None:
    done = subprocess.run([str(FOLDER / "gpu.sh"), sys.executable], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "gpu.sh: torch sees no GPU here; nothing was checked\n"
