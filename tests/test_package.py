"""What a person who installs the wheel gets."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from autoq.networks import MODELS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), str(ROOT)]
    subprocess.run(command, check=True)
    (found,) = folder.glob("*.whl")
    return found


def test_the_wheel_holds_spaces_weights_and_the_template(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "autoq/search_spaces/default.yaml",
        "autoq/report/template.html.j2",
        "autoq/export/card.md.j2",
        "autoq/export/run.py.j2",
        *(f"autoq/weights/{file}" for info in MODELS.values() for file in info.bundled.values()),
    } <= names


def test_the_wheel_works_away_from_the_source(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = "import autoq, sys; from autoq.cli import main; sys.argv = ['autoq', 'space', 'srgan']; main()"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "model: srgan" in done.stdout


def test_everything_direct_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    names = {name.split("[")[0].split(">")[0].split("=")[0].strip().lower() for name in wanted}
    pinned = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    assert names <= pinned, names - pinned
