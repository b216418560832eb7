"""Whole searches, small: as commands in processes of their own, or in this process without Ray's.

Within `no_ray` the product's runner, searcher and worker code run as they are; only Ray's public functions are replaced, by
one worker in a loop. What Ray and its processes do is tested with them, in tuning/test_runner.py.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from autoq import cli
from tests.conftest import small_image

if TYPE_CHECKING:
    from ray import tune

SPACE = """
roles:
  weight: {bits: [4, 8, 16], quantizer: [minmax, lsq], clipping: [minmax, mse]}
  activation: {bits: [4, 8], quantizer: lsq, clipping: minmax}
  skip: {bits: 8, quantizer: lsq, clipping: minmax}
"""

BASELINES = {"float", "8/8/8", "6/6/8", "4/4/8", "first-last-16"}

OPTIONS = [
    "--model", "srresnet", "--scale", "2", "--space", "space.yaml", "--budget", "8", "--steps", "16", "--workers", "1", "--threads", "1",
    "--frame", "32x24", "--replications", "1", "--data", "train", "--eval-data", "eval", "--test-data", "test",
]  # fmt: skip
"""A search over the tiny network in a `furnished` folder, once --weights and --study are added."""


def furnished(folder: Path) -> Path:
    """The folder, with the files that OPTIONS name."""
    (folder / "space.yaml").write_text(SPACE)
    for number, name in enumerate(("train", "eval", "test")):
        small_image(folder / name, number)
    return folder


def command(*arguments: str) -> list[str]:
    """What `autoq` with arguments is in a process of its own."""
    return [sys.executable, "-c", "from autoq.cli import main; main()", *arguments]


def environment(folder: Path) -> dict[str, str]:
    """Of a process: no metrics whose models would have to be read."""
    return {**os.environ, "TORCH_HOME": str(folder / "no-metrics")}


def run_python(folder: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python code with arguments in a process of its own; the current folder is `folder`."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder, capture_output=True, text=True, check=False, env=environment(folder), timeout=300,
    )  # fmt: skip


def in_process(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`autoq` with arguments in this process, without Ray; the current folder is `folder`."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, no_ray(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["autoq", *arguments])
        patch.setattr(sys, "path", [*sys.path])
        patch.setenv("TORCH_HOME", environment(folder)["TORCH_HOME"])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    return subprocess.CompletedProcess(arguments, int(stop.value.code or 0), out.getvalue(), err.getvalue())


# ------------------------------------------------------------ Ray's part, in this process


@contextlib.contextmanager
def no_ray() -> Iterator[None]:
    """Searches within run in this process."""
    import ray
    from ray import tune

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
        patch.setattr(ray, "init", lambda **options: None)
        patch.setattr(ray, "shutdown", lambda: None)
        patch.setattr(tune, "with_parameters", _with_parameters)
        patch.setattr(tune, "with_resources", lambda trainable, resources: trainable)
        patch.setattr(tune, "Tuner", LocalTuner)
        yield


def _with_parameters(trainable: type[tune.Trainable], **parameters: Any) -> type[tune.Trainable]:
    """As tune.with_parameters, which keeps the parameters in Ray's object store."""

    class WithParameters(trainable):  # type: ignore[valid-type, misc]
        def setup(self, config: dict[str, Any]) -> None:
            super().setup(config, **parameters)

    return WithParameters


@dataclass
class LocalTuner:
    """As tune.Tuner with one worker and reused actors; after a trial that ends in an error the next one has a new actor."""

    trainable: type[tune.Trainable]
    tune_config: tune.TuneConfig
    run_config: tune.RunConfig

    def fit(self) -> None:
        from ray.tune.search import Searcher

        searcher = self.tune_config.search_alg
        assert isinstance(searcher, Searcher)
        actor: tune.Trainable | None = None
        for number in range(1000):
            name = f"t{number}"
            config = searcher.suggest(name)
            if config == Searcher.FINISHED:
                return
            assert isinstance(config, dict), "nothing runs and nothing is suggested"
            if actor is None:
                actor = object.__new__(self.trainable)  # its __init__ makes a folder for logs
                actor.setup(config)
            assert actor.reset_config(config)
            report = actor.step()
            if report["done"]:
                searcher.on_trial_complete(name, report)
                continue
            searcher.on_trial_result(name, report)
            with pytest.raises(RuntimeError):
                actor.step()
            searcher.on_trial_complete(name, error=True)
            actor = None
        raise AssertionError("the search does not end")
