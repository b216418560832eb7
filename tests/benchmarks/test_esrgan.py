"""The search over a file in its authors' layout, in this process; and what is measured of a command."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import pytest

from autoq.networks import fresh_model
from benchmarks import esrgan
from tests.conftest import small_image
from tests.searching import in_process


def test_a_study_from_a_file_in_the_authors_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def watch(command: list[str]) -> tuple[float, float, str]:
        assert command[:3] == [sys.executable, "-c", "from autoq.cli import main; main()"]
        done = in_process(
            Path.cwd(), *command[3:], "--steps", "2", "--initial-trials", "0", "--test-data", str(small_image(tmp_path / "test", 2))
        )
        assert done.returncode == 0, done.stderr
        return 12.34, 5.678, done.stdout

    narrow = functools.partial(fresh_model, features=16, growth=8)
    monkeypatch.setattr(esrgan, "fresh_model", narrow)
    monkeypatch.setattr(esrgan, "watch", watch)
    monkeypatch.chdir(tmp_path)
    options = ["--blocks", "1", "--frame", "16x16", "--budget", "1", "--data", str(small_image(tmp_path / "train", 0)), "--json"]
    options += ["--eval-data", str(small_image(tmp_path / "eval", 1))]
    monkeypatch.setattr(sys, "argv", ["esrgan.py", *options])
    esrgan.main()
    figures = json.loads(capsys.readouterr().out)["figures"]
    assert (figures["blocks"], figures["trials"], figures["complete"]) == (1, 1, 1)
    assert figures["float_bytes"] == 4 * sum(parameter.numel() for parameter in narrow("esrgan", 4, blocks=1).parameters())
    assert (figures["seconds"], figures["peak_gib"]) == (12.3, 5.68)


def test_memory_is_that_of_a_command_and_of_its_children_at_its_peak() -> None:
    """Each holds 100 MiB, for more than a period of looking."""
    holds = "import time; held = bytearray(100 * 2**20); time.sleep(1.2)"
    code = f"import subprocess, sys; child = subprocess.Popen([sys.executable, '-S', '-c', {holds!r}]); {holds}; child.wait(); print('said')"
    seconds, peak, output = esrgan.watch([sys.executable, "-S", "-c", code])
    assert output == "said\n"
    assert seconds > 1
    assert 200 < peak * 1024 < 280


def test_a_search_that_fails_ends_the_benchmark() -> None:
    with pytest.raises(SystemExit, match="the search ended with exit code 3"):
        esrgan.watch([sys.executable, "-S", "-c", "raise SystemExit(3)"])
