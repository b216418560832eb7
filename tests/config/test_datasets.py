"""Image sets by name, in folders as people have them."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoq.config.datasets import DATASETS, ROOT, image_folder
from autoq.config.options import SearchOptions
from autoq.config.spec import TrialSpec
from autoq.errors import InputError


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for folder in (
        "benchmark/Set5/HR",
        "benchmark/B100",
        "Urban100/LR_bicubic",
        "deep/er/still/Manga109",
        "DIV2K_valid_HR",
        ".set14",
    ):
        (tmp_path / "sets" / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(ROOT, raising=False)
    return tmp_path / "sets"


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("set5", "benchmark/Set5/HR"),
        ("Set5", "benchmark/Set5/HR"),
        ("bsd100", "benchmark/B100"),
        ("urban100", "Urban100"),
        ("div2k_valid", "DIV2K_valid_HR"),
    ],
)
def test_a_set_lies_below_the_root(root: Path, monkeypatch: pytest.MonkeyPatch, name: str, folder: str) -> None:
    assert image_folder(name, root) == root / folder
    monkeypatch.setenv(ROOT, str(root))
    assert image_folder(name) == root / folder
    options = SearchOptions.of(model="srgan", eval_data=name)
    assert options.eval_data == root / folder
    assert "data_root" not in options.model_fields_set


def test_options_take_the_root_and_do_not_keep_it(root: Path) -> None:
    options = SearchOptions.of(model="srgan", data="urban100", test_data=str(root), data_root=root)
    assert (options.data, options.eval_data, options.test_data) == (root / "Urban100", None, root)
    spec = TrialSpec(model="srgan", data=options.data)
    assert spec.data == root / "Urban100"
    assert "data_root" not in spec.model_dump()


def test_a_folder_that_is_there_is_taken_before_a_set(root: Path) -> None:
    Path("set5").mkdir()
    assert image_folder("set5", root) == Path("set5").resolve()
    assert image_folder("other", root) == Path("other").resolve(), "whether it is there is said when it is read"


@pytest.mark.parametrize(
    ("name", "where", "message"),
    [
        ("set5", None, f"'set5': no such folder; type --data-root DIR, or set {ROOT}, with the folder of your image sets"),
        ("set5", "nowhere", "'nowhere': no such folder; type --data-root DIR"),
        ("manga109", "sets", "'manga109': no folder of this name in 'sets' or 1 folder below; give the path of its images"),
        ("set14", "sets", "'set14': no folder of this name"),
    ],
)
def test_what_is_not_there(root: Path, name: str, where: str | None, message: str) -> None:
    with pytest.raises(InputError) as refused:
        image_folder(name, where)
    assert str(refused.value).startswith(message)


def test_names_are_lower_case() -> None:
    assert all(text == text.lower() for name, folders in DATASETS.items() for text in (name, *folders))
