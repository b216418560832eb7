from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from autoq.errors import AutoqError, InputError, WeightsError
from autoq.networks import BUNDLED, MODELS, build_model, bundled_record
from autoq.networks.published import published_file
from autoq.networks.srresnet import SRResNet


@pytest.mark.parametrize(("name", "scale"), [(name, scale) for name, info in MODELS.items() for scale in info.bundled])
def test_bundled_weights_load_and_are_as_their_record_says(name: str, scale: int) -> None:
    model = build_model(name, scale)
    file = MODELS[name].bundled[scale]
    record = bundled_record(file)
    assert not model.training
    assert record["file"] == file
    assert record["parameters"] == sum(parameter.numel() for parameter in model.parameters())


def test_bundled_weights_stay_small() -> None:
    assert sum(path.stat().st_size for path in BUNDLED.iterdir()) < 20_000_000
    assert {path.name for path in BUNDLED.glob("*.safetensors")} == {
        file for info in MODELS.values() for file in info.bundled.values()
    }


@pytest.mark.parametrize(
    ("file", "scale", "blocks"), [("srgan_5block_x4_leftthomas.pth", 4, 5), ("srgan_5block_x2_leftthomas.pth", 2, 5)]
)
def test_public_checkpoint_is_recognized(shared: Path, file: str, scale: int, blocks: int) -> None:
    model = build_model("srgan", scale, shared / "weights" / file)
    assert len(model.body) == blocks
    assert model.output == "tanh"


def test_a_checkpoint_of_another_scale_says_what_to_type(shared: Path) -> None:
    with pytest.raises(WeightsError, match="a x2 network, but --scale is 4; type --scale 2"):
        build_model("srgan", 4, shared / "weights" / "srgan_5block_x2_leftthomas.pth")


def test_a_pickled_module_is_refused(shared: Path) -> None:
    with pytest.raises(
        WeightsError, match="a pickled Python object, which can run arbitrary code when loaded, expected a state dict"
    ):
        build_model("srgan", 4, shared / "weights" / "vdsr_pickled_module_twtygqyy.pth")


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("exploded"),))  # type: ignore[return-value]


def test_code_in_a_checkpoint_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"head.0.weight": _Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(WeightsError):
        build_model("srgan", 4, tmp_path / "bomb.pth")
    assert not (tmp_path / "exploded").exists()


def test_missing_extra_and_misshapen_keys_are_listed(tmp_path: Path) -> None:
    state = SRResNet(scale=2, blocks=1, features=8).state_dict()
    del state["fuse.0.bias"]
    state["extra.weight"] = torch.zeros(1)
    state["tail.bias"] = torch.zeros(4)
    save_file(state, tmp_path / "odd.safetensors")
    with pytest.raises(WeightsError) as error:
        build_model("srresnet", 2, tmp_path / "odd.safetensors")
    assert str(error.value).endswith(
        "do not match SRResNet(scale=2, blocks=1, features=8): 1 missing: fuse.0.bias; 1 unexpected: extra.weight; 1 with another shape: tail.bias;"
        " give matching --weights, or another --model"
    )


def test_unusable_files_and_names(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("no tensors here")
    with pytest.raises(WeightsError, match=r"text\.pth'"):
        build_model("srgan", 4, tmp_path / "text.pth")
    with pytest.raises(WeightsError, match=r"no such file; give a \.safetensors or \.pth file"):
        build_model("srgan", 4, tmp_path / "none.pth")
    with pytest.raises(WeightsError, match=r"no weights are bundled for srgan x2, only for x4; type --weights FILE"):
        build_model("srgan", 2)
    with pytest.raises(InputError, match=r"--scale '3': model 'srgan' supports 2 and 4, for example --scale 4"):
        build_model("srgan", 3)
    with pytest.raises(InputError, match=r"unknown model 'srgn' \(did you mean 'srgan'\?\); type one of edsr, "):
        build_model("srgn", 4)


def test_published_weights_are_fetched_once_and_offline_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    asked = []

    def offline(address: str, path: Path, checksum: str | None) -> None:
        asked.append((address, path, checksum))
        raise AutoqError("no network")

    monkeypatch.setattr("autoq.networks.published.download", offline)
    with pytest.raises(WeightsError, match="^no network$"):
        published_file("edsr", 2)
    place = tmp_path / "autoq" / "edsr_baseline_x2-1bc95232.pt"
    assert asked == [("https://cv.snu.ac.kr/research/EDSR/models/edsr_baseline_x2-1bc95232.pt", place, "1bc95232")]
    place.parent.mkdir()
    place.write_bytes(b"")
    assert published_file("edsr", 2) == place
    assert len(asked) == 1
    with pytest.raises(
        WeightsError, match=r"--weights published: no download for xlsr x3 \(available: esrgan x4, .*\); type --weights FILE"
    ):
        published_file("xlsr", 3)
    with pytest.raises(WeightsError, match="type --weights FILE, or --weights published to download https"):
        build_model("edsr-full", 4)
