"""Float training: what it writes, that it can be stopped and taken up again, and the schedules of the papers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel

from autoq.api import networks
from autoq.config.events import Progress, TrainingEvents
from autoq.config.spec import PretrainSpec
from autoq.errors import InputError, TrialFailed
from autoq.networks import build_model, model_info
from autoq.networks.recipes import PIXELS, XLSR
from autoq.networks.srresnet import SRResNet
from autoq.training import adversarial, pretrain
from tests.cli.test_cli import run
from tests.conftest import small_image


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("images")
    return small_image(folder / "train", 0, side=128), small_image(folder / "eval", 1)


class Stop(TrainingEvents):
    """Interrupts the training after a step; keeps what it heard."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.heard = at, list[Progress]()

    def stepped(self, step: int) -> None:
        if step == self.at:
            raise KeyboardInterrupt

    def validated(self, progress: Progress) -> None:
        self.heard.append(progress)


def train(images: tuple[Path, Path], output: Path, **options: object) -> dict[str, object]:
    settings = {"scale": 3, "steps": 6, "threads": 1, "data": images[0], "eval_data": images[1], "device": "cpu"} | options
    return networks.pretrain("espcn", output=output, **settings)[1]


def test_training_writes_weights_that_load_and_a_record(images: tuple[Path, Path], tmp_path: Path) -> None:
    events = Stop()
    record = train(images, tmp_path / "run", events=events)
    stored = json.loads((tmp_path / "run" / "record.json").read_text())
    assert stored == record | {"recipe": stored["recipe"]}
    assert record["parameters"] == 31_131
    assert record["steps"] == 6
    assert record["data"] == {"images": 1, "names_sha256": stored["data"]["names_sha256"]}
    assert [progress.step for progress in events.heard] == [1, 2, 3, 4, 5, 6]
    assert record["psnr_mean"] == pytest.approx(events.heard[-1].value, abs=1e-3)
    weights = tmp_path / "run" / "weights.safetensors"
    assert {tensor.dtype for tensor in load_file(weights).values()} == {torch.float16}
    assert build_model("espcn", 3, weights)(torch.rand(1, 3, 8, 8)).shape == (1, 3, 24, 24)
    assert not list((tmp_path / "run").glob(".*"))


def test_an_interrupted_training_ends_as_an_uninterrupted_one(images: tuple[Path, Path], tmp_path: Path) -> None:
    train(images, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(images, tmp_path / "parts", events=Stop(at=3))
    assert not (tmp_path / "parts" / "weights.safetensors").exists()
    train(images, tmp_path / "parts", resume=True)
    whole, parts = (load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "parts"))
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, rtol=0, atol=0)


def test_an_interrupt_within_a_step_leaves_what_was_saved_last(
    images: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(images, tmp_path / "whole")

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt  # the weights have moved, their average has not

    class Third(TrainingEvents):
        def stepped(self, step: int) -> None:
            if step == 2:
                monkeypatch.setattr(AveragedModel, "update_parameters", stop)

    with pytest.raises(KeyboardInterrupt):
        train(images, tmp_path / "torn", events=Third())
    monkeypatch.undo()
    train(images, tmp_path / "torn", resume=True)
    whole, torn = (load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "torn"))
    for key, value in whole.items():
        torch.testing.assert_close(torn[key], value, rtol=0, atol=0)


def test_a_training_is_not_overwritten_and_not_changed_under_way(images: tuple[Path, Path], tmp_path: Path) -> None:
    train(images, tmp_path / "run", steps=2)
    with pytest.raises(InputError, match="already has a training; type `--resume` to continue it, or give another --output"):
        train(images, tmp_path / "run", steps=2)
    with pytest.raises(
        InputError, match=r"--resume: steps is 3, expected 2 as in the training in '.*'; repeat the original command with --resume"
    ):
        train(images, tmp_path / "run", steps=3, resume=True)
    with pytest.raises(InputError, match=r"--resume: no training in '.*none'; leave out --resume to start one"):
        train(images, tmp_path / "none", resume=True)


def test_losses_fall(images: tuple[Path, Path], tmp_path: Path) -> None:
    events = Stop()
    train(images, tmp_path / "run", steps=60, events=events)
    assert events.heard[-1].loss < 0.5 * events.heard[0].loss
    assert events.heard[-1].value > events.heard[0].value + 3


@pytest.mark.parametrize(("model", "kind"), [("srgan", "hinge"), ("esrgan-6", "relativistic")])
def test_the_adversarial_stage(model: str, kind: str, images: tuple[Path, Path], tmp_path: Path) -> None:
    assert model_info(model).recipe.adversarial == kind
    weights = tmp_path / "start.safetensors"
    network = SRResNet(blocks=1, features=8) if model == "srgan" else build_small_esrgan()
    save_file(network.state_dict(), weights)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    _, record = networks.pretrain(
        model, weights=weights, data=images[0], eval_data=images[1], adversarial_steps=2, threads=1, device="cpu", output=tmp_path / "run"
    )  # fmt: skip
    assert record["steps"] == 0
    assert record["perceptual_loss"].startswith("discriminator features (")
    after = load_file(tmp_path / "run" / "weights.safetensors")
    assert any(not torch.equal(after[key].float(), before[key].half().float()) for key in after)


def build_small_esrgan() -> torch.nn.Module:
    from autoq.networks.esrgan import ESRGAN

    return ESRGAN(blocks=1, features=16, growth=8)


def test_vgg19_is_used_where_its_weights_are(images: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert not adversarial.vgg19_file().is_file()
    from autoq.system.compat import allow_torchvision

    allow_torchvision()
    from torchvision.models import vgg19

    adversarial.vgg19_file().parent.mkdir()
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in vgg19().state_dict().items()}
    torch.save({key: torch.full((1,), 0.01).expand(shape) for key, shape in shapes.items()}, adversarial.vgg19_file())
    with torch.no_grad():
        (features,) = adversarial.VGGFeatures()(torch.rand(1, 3, 32, 32))
    assert features.shape == (1, 512, 2, 2)


def test_adversarial_losses_against_their_formulas() -> None:
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 1.0])
    assert adversarial.judge_loss("hinge", real, fake).item() == pytest.approx((0 + 0.5) / 2 + (0 + 2) / 2)
    assert adversarial.generator_loss("hinge", real, fake).item() == pytest.approx(0.5)

    def surprise(scores: np.ndarray, expected: bool) -> float:
        probability = 1 / (1 + np.exp(-scores))
        return float(-np.log(probability if expected else 1 - probability).mean())

    r, f = real.numpy(), fake.numpy()
    judge = (surprise(r - f.mean(), True) + surprise(f - r.mean(), False)) / 2
    generator = (surprise(r - f.mean(), False) + surprise(f - r.mean(), True)) / 2
    assert adversarial.judge_loss("relativistic", real, fake).item() == pytest.approx(judge, rel=1e-5)
    assert adversarial.generator_loss("relativistic", real, fake).item() == pytest.approx(generator, rel=1e-5)


def test_the_triangle_of_xlsr() -> None:
    """Ayazoglu 2021, section 4.2: 5e-5, up to 25e-4 in 50 of 5000 epochs, down to 1e-4 in a line."""
    steps = 5000
    rates = [pretrain.learning_rate(XLSR, step, steps) for step in range(steps)]
    assert rates[0] == pytest.approx(5e-5)
    assert max(rates) == rates[50] == pytest.approx(25e-4)
    assert rates[-1] == pytest.approx(1e-4, rel=0.01)
    assert rates[50] - rates[1050] == pytest.approx(rates[1050] - rates[2050])


def test_batch_norms_are_frozen_at_the_end_at_a_lower_rate() -> None:
    assert pretrain.learning_rate(PIXELS, 950, 1000, frozen=True) == pytest.approx(pretrain.FROZEN_RATE * PIXELS.rates[1])
    assert pretrain.learning_rate(PIXELS, 999, 1000, frozen=True) < 2e-5


def test_statistics_of_batch_norm_stay_in_the_frozen_part(images: tuple[Path, Path], tmp_path: Path) -> None:
    save_file(SRResNet(scale=4, blocks=1, features=8).state_dict(), tmp_path / "start.safetensors")
    spec = PretrainSpec(
        model="srresnet", scale=4, weights=tmp_path / "start.safetensors", data=images[0], eval_data=images[1], steps=40
    )
    training = pretrain.Training(spec)
    statistics = training.model.get_buffer("body.0.bn1.running_mean")
    seen = []

    class Watch(TrainingEvents):
        def stepped(self, step: int) -> None:
            seen.append(statistics.clone())

    training.run(Watch(), lambda: None)
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[-1], seen[-2])


def test_divergence_is_said(images: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    training = pretrain.Training(PretrainSpec(model="espcn", scale=3, data=images[0], eval_data=images[1], steps=2))
    next(training.model.parameters()).data.fill_(float("nan"))
    with pytest.raises(TrialFailed, match="training diverged: the loss is nan at step 1 of 2"):
        training.run(TrainingEvents(), lambda: None)


def test_the_command(
    images: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["pretrain", "--model", "espcn", "--scale", "3", "--data", str(images[0]), "--eval-data", str(images[1]), "--steps", "2", "--threads", "1", "--json"]  # fmt: skip
    code, out, err = run(capsys, monkeypatch, *arguments)
    assert code == 0
    assert json.loads(out)["weights"] == "pretrained/espcn-x3/weights.safetensors"
    assert "step 2 of 2" in err
    code, out, err = run(capsys, monkeypatch, "pretrain", "--model", "espcn", "--adversarial-steps", "3")
    assert (code, err) == (2, "autoq: --adversarial-steps 3: espcn is trained on pixels alone; omit it\n")


def test_an_interrupted_command_says_how_to_go_on(
    images: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["pretrain", "--model", "espcn", "--scale", "3", "--data", str(images[0]), "--eval-data", str(images[1]), "--steps", "4", "--threads", "1", "--quiet"]  # fmt: skip

    def stop(self: TrainingEvents, step: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrainingEvents, "stepped", stop)
        code, out, err = run(capsys, monkeypatch, *arguments)
    assert (code, out, err) == (130, "", "autoq: interrupted; to continue, repeat the command with --resume\n")
    assert run(capsys, monkeypatch, *arguments, "--resume")[0] == 0
    (tmp_path / "pretrained" / "espcn-x3" / "state.pt").write_text("text")
    code, out, err = run(capsys, monkeypatch, *arguments, "--resume")
    assert (code, err.count("\n")) == (2, 1)
    assert "state.pt' is damaged or not a training state; delete it to start again" in err
    code, out, err = run(capsys, monkeypatch, *arguments, "--output", "/proc/none")
    assert (code, err) == (
        2,
        "autoq: --output '/proc/none': No such file or directory; give a writable folder\n",
    )
