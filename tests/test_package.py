"""What a person who installs the wheel gets."""

import email
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path, PurePath

import pytest

from autoq import __version__
from autoq.networks import MODELS

ROOT = Path(__file__).parents[1]
SPACES = {path.name for path in (ROOT / "search_spaces").glob("*.yaml")}


def build(source: Path, folder: Path) -> Path:
    """The sdist and the wheel of a source tree, in a new folder."""
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", str(folder)], cwd=source, check=True)
    return folder


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("dist") / "dist")


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    return dist / f"autoq-{__version__}-py3-none-any.whl"


def files(wheel: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}


def test_the_wheel_holds_the_package_and_no_more(wheel: Path) -> None:
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "autoq").rglob("*.py")}
    weights = {f"autoq/weights/{file}" for info in MODELS.values() for file in info.bundled.values()}
    records = {f"{file.removesuffix('_float16.safetensors')}.json" for file in weights}
    spaces = {f"autoq/search_spaces/{name}" for name in SPACES}
    templates = {"autoq/report/template.html.j2", "autoq/export/card.md.j2", "autoq/export/run.py.j2"}
    metadata = {
        f"autoq-{__version__}.dist-info/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")
    }
    assert files(wheel) == modules | weights | records | spaces | templates | metadata | {"autoq/py.typed"}


def test_the_sdist_holds_what_the_wheel_is_built_from_and_no_more(dist: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(dist / f"autoq-{__version__}.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
        names = {PurePath(name).parts[1] for name in archive.getnames()}
    assert names == {
        "autoq", "search_spaces", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "PKG-INFO", ".gitignore",
    }  # fmt: skip
    again = build(tmp_path / f"autoq-{__version__}", tmp_path / "again") / wheel.name
    record = f"autoq-{__version__}.dist-info/RECORD"
    assert zipfile.ZipFile(again).read(record) == zipfile.ZipFile(wheel).read(record)


def test_the_metadata_tell_what_to_install_and_run(wheel: Path) -> None:
    archive, info = zipfile.ZipFile(wheel), f"autoq-{__version__}.dist-info"
    metadata = email.message_from_bytes(archive.read(f"{info}/METADATA"))
    assert (metadata["Name"], metadata["Version"], metadata["License-Expression"]) == ("autoq", __version__, "Apache-2.0")
    assert metadata["Requires-Python"] == ">=3.11"
    assert archive.read(f"{info}/entry_points.txt").decode().split() == ["[console_scripts]", "autoq", "=", "autoq.cli:main"]


def installed(wheel: Path, folder: Path, *words: str) -> str:
    """What a command of the installed wheel prints, run in an empty folder."""
    here = folder / "here"
    here.mkdir()
    target = folder / "site"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run(command, check=True)
    environment = {**os.environ, "PYTHONPATH": str(target)}
    done = subprocess.run([target / "bin/autoq", *words], cwd=here, env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def test_the_installed_command_lists_the_spaces_of_the_wheel(wheel: Path, tmp_path: Path) -> None:
    listed = installed(wheel, tmp_path, "space", "--list")
    assert {f"{line}.yaml" for line in listed.splitlines() if line and line[0] != " "} == SPACES


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=~;\s]", name)[0].lower() for name in requirements}


def pins(file: str) -> dict[str, str]:
    """name -> version of every `name==version` in a file of requirements."""
    found = re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / file).read_text(), re.MULTILINE)
    return {name.lower(): version for name, version in found}


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BUILD = {"hatchling", "editables"}
DIRECT = {
    "requirements/run.txt": names(PROJECT["dependencies"]) | BUILD,
    "requirements/test.txt": names([*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]) | BUILD,
}


@pytest.mark.parametrize("lock", DIRECT)
def test_a_lock_holds_every_dependency_as_it_is_pinned_with_hashes(lock: str) -> None:
    locked, pinned = pins(lock), pins("constraints.txt")
    assert DIRECT[lock] <= pinned.keys()
    assert DIRECT[lock] - {"torch", "torchvision"} <= locked.keys()
    assert {name: version for name, version in locked.items() if pinned.get(name, version) != version} == {}
    entries = re.split(r"\n(?=[\w.-]+==)", (ROOT / lock).read_text())
    assert [entry for entry in entries if "--hash=sha256:" not in entry] == []
