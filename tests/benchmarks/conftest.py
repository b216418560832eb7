"""The benchmarks run in this process: a script of its own spends seconds on imports."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

RunBenchmark = Callable[..., tuple[dict[str, Any], str]]


@pytest.fixture
def run_benchmark(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunBenchmark:
    """A benchmark's module and options -> the document it prints, and what it says meanwhile."""

    def run(script: ModuleType, *options: str) -> tuple[dict[str, Any], str]:
        monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *options, "--json"])
        script.main()
        output = capsys.readouterr()
        return json.loads(output.out), output.err

    return run
