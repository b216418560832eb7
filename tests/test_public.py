"""What is imported from `autoq`: functions and classes, never modules of the same name."""

from __future__ import annotations

import inspect
import pkgutil
import subprocess
import sys

import pytest

import autoq

NAMES = [name for name in autoq.__all__ if name != "__version__"]
FUNCTIONS = {
    "cost", "evaluate", "export_point", "fetch_metrics", "finetune", "models", "open_study", "pretrain", "search", "sensitivity",
    "unpack", "upscale",
    "write_report",
}  # fmt: skip
AFTER_ITS_MODULES = """
import autoq.api.networks, autoq.deploy.evaluate, autoq.deploy.upscale, autoq.networks, autoq.training.pretrain
import autoq.trial.finetune, autoq.tuning.sensitivity, inspect
print(*sorted(name for name in autoq.__all__ if inspect.isfunction(getattr(autoq, name))))
"""


def test_no_module_has_the_name_of_a_public_function() -> None:
    assert not {module.name for module in pkgutil.iter_modules(autoq.__path__)} & set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_a_function_or_a_class(name: str) -> None:
    found = getattr(autoq, name)
    assert inspect.isfunction(found) if name in FUNCTIONS else inspect.isclass(found)
    assert found.__name__ == name
    assert inspect.getdoc(found)


def test_every_public_function_is_one_after_its_modules_are_imported() -> None:
    done = subprocess.run([sys.executable, "-c", AFTER_ITS_MODULES], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == FUNCTIONS


def test_the_networks_are_listed() -> None:
    found = {network["name"]: network for network in autoq.models()}
    assert found["srgan"]["scales"] == [2, 4]
    assert found["srgan"]["parameters"][4] == 1_549_462


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(AttributeError, match="module 'autoq' has no attribute 'serch'"):
        autoq.serch  # noqa: B018
