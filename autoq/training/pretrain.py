"""Float training from scratch with each paper's recipe (`autoq pretrain`), resumable, on CPU and GPU.

<folder>/state.pt              checkpoint of the training, written at least every minute
         weights.safetensors   moving average of the weights, float16, written at the end
         record.json           network, settings, data, and the PSNR reached
"""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from autoq.config.events import Progress, TrainingEvents
from autoq.config.spec import PretrainSpec
from autoq.errors import InputError, TrialFailed
from autoq.graph.inference import upscale
from autoq.images.data import PatchSampler, check_disjoint, eval_images, make_pair, to_pixels, train_images, turned
from autoq.images.pixels import LEVELS
from autoq.metrics.quality import psnr
from autoq.networks import build_model, fresh_model, model_info
from autoq.networks.recipes import Recipe
from autoq.system.device import channels_last, native_bfloat16
from autoq.system.files import atomic_write
from autoq.training import adversarial

AVERAGE_DECAY = 0.999
"""Decay of the moving average of the weights, which is validated and saved; smaller in the first steps."""

LARGEST_GRADIENT = 1.0
FROZEN_SHARE = 0.05
"""Final share of the pixel steps, in which batch norm uses its running statistics, as it is folded afterwards."""

FROZEN_RATE = 0.4
"""Learning rate at the start of that phase, relative to the highest; it decays to the last rate."""

ADVERSARIAL_RATE, JUDGE_RATE = 1e-4, 2e-4
INTENSITIES = (1.0, 0.7, 0.5)
HE_VARIANCE = 0.1
CHARBONNIER_EPSILON = 0.1
"""Ayazoglu 2021, equation 3."""

VALIDATIONS = 20
"""Number of validations, evenly spaced over the steps."""

SAVE_SECONDS = 60
"""Longest interval between saves; the state is also saved at every validation."""


class Training:
    """The state of a float training: network, optimizers, moving average and data."""

    def __init__(self, spec: PretrainSpec) -> None:
        torch.set_num_threads(spec.threads)
        torch.manual_seed(spec.seed)
        self.spec, self.recipe = spec, model_info(spec.model).recipe
        self.steps = spec.steps + spec.adversarial_steps
        self.step, self.seconds = 0, 0.0
        self.between_steps = True
        if spec.weights:
            self.model = build_model(spec.model, spec.scale, spec.weights)
        else:
            self.model = fresh_model(spec.model, spec.scale)
            if self.recipe.he_start:
                _he_start(self.model)
        self.model = channels_last(self.model.to(spec.device))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=self.recipe.rates[1], betas=(0.9, 0.99))
        self.average = AveragedModel(self.model, multi_avg_fn=_average, use_buffers=True)
        self.judge: nn.Module | None = None
        if spec.adversarial_steps:
            self.judge = channels_last(adversarial.Discriminator().to(spec.device))
            self.judge_optimizer = torch.optim.Adam(self.judge.parameters(), lr=JUDGE_RATE, betas=(0.9, 0.99))
        self.vgg = adversarial.VGGFeatures().to(spec.device) if self.judge and adversarial.vgg19_file().is_file() else None
        train, evaluation = train_images(spec.data), eval_images(spec.eval_data)
        check_disjoint(train, evaluation)
        self.pairs = [make_pair(image, spec.scale) for image in train]
        self.evaluation = [make_pair(image, spec.scale) for image in evaluation]
        self.sampler = PatchSampler(self.pairs, self.recipe.patch, spec.sampling)

    @property
    def perceptual_loss(self) -> str | None:
        """Description of the feature loss; None without an adversarial stage."""
        if self.judge is None:
            return None
        return "VGG19 features" if self.vgg else f"discriminator features ({adversarial.vgg19_file()} is missing)"

    def _parts(self) -> dict[str, Any]:
        parts: dict[str, Any] = {"model": self.model, "average": self.average, "optimizer": self.optimizer}
        if self.judge is not None:
            parts |= {"judge": self.judge, "judge_optimizer": self.judge_optimizer}
        return parts

    def state(self) -> dict[str, Any]:
        """Checkpoint of the training."""
        states = {name: part.state_dict() for name, part in self._parts().items()}
        return {"spec": self.spec.model_dump_json(), "step": self.step, "seconds": self.seconds, **states}

    def load(self, state: dict[str, Any]) -> None:
        """Restore a checkpoint."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.step, self.seconds = state["step"], state["seconds"]

    def run(self, events: TrainingEvents, save: Callable[[], None]) -> None:
        """Run the remaining steps. Raises TrialFailed if the loss is not finite."""
        losses: list[float] = []
        every = max(1, self.steps // VALIDATIONS)
        start = time.perf_counter() - self.seconds
        save()
        saved = time.perf_counter()
        events.begin(self.step, self.steps)
        while self.step < self.steps:
            self.between_steps = False
            losses.append(self._pixel_step() if self.step < self.spec.steps else self._adversarial_step())
            self.average.update_parameters(self.model)
            self.step += 1
            self.between_steps = True
            events.stepped(self.step)
            if not math.isfinite(losses[-1]):
                raise TrialFailed(f"training diverged: the loss is {losses[-1]} at step {self.step} of {self.steps}", self.step)
            validates = self.step % every == 0 or self.step == self.steps
            if validates or time.perf_counter() - saved > SAVE_SECONDS:
                self.seconds = time.perf_counter() - start
                save()
                saved = time.perf_counter()
            if validates:
                events.validated(Progress(self.step, self.steps, float(np.mean(losses)), self.validate(), self.seconds))
                losses.clear()

    def validate(self) -> float:
        """Mean PSNR on Y (dB, border = scale) of the averaged weights on the evaluation images."""
        return float(np.mean(list(self.psnrs().values())))

    def psnrs(self) -> dict[str, float]:
        """PSNR in dB by evaluation image."""
        network, device, scale = self.average.module.eval(), self.spec.device, self.spec.scale
        return {
            pair.name: psnr(to_pixels(upscale(network, pair.low, device)), pair.high, scale)
            for pair in self.evaluation
            if pair.high is not None
        }

    # ------------------------------------------------------------ steps

    def _batch(self) -> tuple[Tensor, Tensor]:
        """Patches of the current step, seeded by its number: low [n, 3, p, p] and high [n, 3, scale p, scale p]."""
        random = np.random.default_rng([self.spec.seed, 3, self.step])
        side, scale = self.recipe.patch, self.spec.scale
        lows: list[np.ndarray] = []
        highs: list[np.ndarray] = []
        factors: list[float] = []
        for _ in range(self.recipe.batch):
            pair, top, left = self.sampler.draw(random)
            turns, flip = int(random.integers(4)), bool(random.integers(2))
            factors.append(INTENSITIES[random.integers(len(INTENSITIES))] if self.recipe.intensity else 1.0)
            assert pair.high is not None
            for patches, pixels, unit in ((lows, pair.low, 1), (highs, pair.high, scale)):
                patch = pixels[top * unit : (top + side) * unit, left * unit : (left + side) * unit]
                patches.append(turned(patch, turns, flip))
        factor = torch.tensor(factors, device=self.spec.device).view(-1, 1, 1, 1)
        bytes_ = (torch.from_numpy(np.stack(patches)).to(self.spec.device) for patches in (lows, highs))
        low, high = (pixels.permute(0, 3, 1, 2).float() / LEVELS * factor for pixels in bytes_)  # both channels_last
        return low, high

    def _autocast(self) -> torch.autocast:
        device = self.spec.device
        return torch.autocast(device, torch.bfloat16, enabled=native_bfloat16(device))

    def _pixel_step(self) -> float:
        frozen = self._frozen()
        self.model.train()
        if frozen:
            _freeze_batch_norms(self.model)
        low, high = self._batch()
        with self._autocast():
            output = self.model(low)
        loss = _pixel_loss(self.recipe, output.float() - high)
        self._descend(self.optimizer, self.model, loss, learning_rate(self.recipe, self.step, self.spec.steps, frozen))
        return loss.item()

    def _frozen(self) -> bool:
        has_batch_norm = any(isinstance(module, nn.BatchNorm2d) for module in self.model.modules())
        return has_batch_norm and self.step >= self.spec.steps * (1 - FROZEN_SHARE)

    def _adversarial_step(self) -> float:
        kind = self.recipe.adversarial
        assert kind is not None
        assert self.judge is not None
        self.model.train()
        _freeze_batch_norms(self.model)
        low, high = self._batch()
        left = 1 - (self.step - self.spec.steps) / self.spec.adversarial_steps
        with self._autocast():
            output = self.model(low)
            real, real_features = self.judge(high)
            fake, fake_features = self.judge(output)
        pixels = nn.functional.l1_loss(output.float(), high)
        if self.vgg is not None:
            with self._autocast():
                features = adversarial.feature_distance(self.vgg(output), self.vgg(high))
        else:
            features = adversarial.feature_distance(fake_features, [target.detach() for target in real_features])
        deception = adversarial.generator_loss(kind, real.float().detach(), fake.float())
        loss = adversarial.PIXEL_WEIGHT * pixels + adversarial.FEATURE_WEIGHT * features
        loss = loss + adversarial.ADVERSARIAL_WEIGHT * deception
        self._descend(self.optimizer, self.model, loss, ADVERSARIAL_RATE * min(1.0, 2 * left))
        with self._autocast():
            real, fake = self.judge(high)[0], self.judge(output.detach())[0]
        judge_loss = adversarial.judge_loss(kind, real.float(), fake.float())
        self._descend(self.judge_optimizer, self.judge, judge_loss, JUDGE_RATE * min(1.0, 2 * left))
        return loss.item()

    @staticmethod
    def _descend(optimizer: torch.optim.Optimizer, network: nn.Module, loss: Tensor, rate: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), LARGEST_GRADIENT)
        optimizer.step()


def learning_rate(recipe: Recipe, step: int, steps: int, frozen: bool = False) -> float:
    """Learning rate of a pixel step: linear warm-up, then the recipe's decay; a second, lower decay with frozen batch norms."""
    first, highest, last = recipe.rates
    start, end = recipe.rise * steps, steps
    if frozen:
        start, highest = (1 - FROZEN_SHARE) * steps, FROZEN_RATE * highest
    if step < start:
        return first + (highest - first) * step / start
    done = (step - start) / max(1.0, end - start)
    left = 1 - done if recipe.fall == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return last + (highest - last) * left


@torch.no_grad()
def _average(averages: Sequence[Tensor], currents: Sequence[Tensor], count: Tensor | int) -> None:
    decay = min(AVERAGE_DECAY, (1 + int(count)) / (10 + int(count)))
    for average, current in zip(averages, currents, strict=True):
        if average.is_floating_point():
            average.lerp_(current, 1 - decay)
        else:
            average.copy_(current)


def _pixel_loss(recipe: Recipe, error: Tensor) -> Tensor:
    if recipe.loss == "l1":
        return error.abs().mean()
    if recipe.loss == "mse":
        return error.square().mean()
    return (error.square() + CHARBONNIER_EPSILON**2).sqrt().mean()


def _he_start(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            module.weight.data.mul_(math.sqrt(HE_VARIANCE))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _freeze_batch_norms(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


# ---------------------------------------------------------------- a run


def pretrain(spec: PretrainSpec, folder: Path, resume: bool, events: TrainingEvents) -> dict[str, Any]:
    """Train a float network, or resume its training, and write the weights to a folder.

    Args:
        spec: Settings of the training.
        folder: Output folder.
        resume: Continue the training in `folder`.
        events: Callbacks for progress.

    Returns:
        The content of record.json.

    Raises:
        InputError: The folder has another training, or none to resume.
        TrialFailed: The loss is not finite.
    """
    state_path = folder / "state.pt"
    state = _read_state(state_path, spec, resume)
    training = Training(spec)
    if state is not None:
        training.load(state)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output '{folder}': {error.strerror}; give a writable folder") from error

    def save() -> None:
        with atomic_write(state_path) as partial:
            torch.save(training.state(), partial)

    try:
        training.run(events, save)
    except KeyboardInterrupt:
        if training.between_steps:  # within a step the state is inconsistent, and the last save remains
            save()
        raise
    record = _record(training)
    averaged = training.average.module.state_dict()
    half = {name: value.half().contiguous() for name, value in averaged.items() if value.is_floating_point()}
    with atomic_write(folder / "weights.safetensors") as partial:
        save_file(half, partial)
    with atomic_write(folder / "record.json") as partial:
        partial.write_text(json.dumps(record, indent=2) + "\n")
    return record


def _read_state(path: Path, spec: PretrainSpec, resume: bool) -> dict[str, Any] | None:
    if not path.exists():
        if resume:
            raise InputError(f"--resume: no training in '{path.parent}'; leave out --resume to start one")
        return None
    if not resume:
        raise InputError(
            f"--output '{path.parent}' already has a training; type `--resume` to continue it, or give another --output"
        )
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        before = json.loads(state["spec"])
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"--resume: '{path}' is damaged or not a training state; delete it to start again") from error
    now = json.loads(spec.model_dump_json())
    for name in ("model", "scale", "weights", "data", "eval_data", "steps", "adversarial_steps", "sampling", "seed"):
        if before[name] != now[name]:
            raise InputError(
                f"--resume: {name} is {now[name]}, expected {before[name]} as in the training in '{path.parent}';"
                " repeat the original command with --resume"
            )
    return state


def _record(training: Training) -> dict[str, Any]:
    spec = training.spec
    names = [pair.name for pair in training.pairs]
    validation = training.psnrs()
    return {
        "model": spec.model,
        "scale": spec.scale,
        "parameters": sum(parameter.numel() for parameter in training.model.parameters()),
        "started_from": spec.weights.name if spec.weights else None,
        "steps": spec.steps,
        "adversarial_steps": spec.adversarial_steps,
        "seconds": round(training.seconds),
        "seed": spec.seed,
        "sampling": spec.sampling,
        "recipe": asdict(training.recipe),
        "perceptual_loss": training.perceptual_loss,
        "data": {"images": len(names), "names_sha256": hashlib.sha256("\n".join(names).encode()).hexdigest()[:12]},
        "validation": {name: round(value, 3) for name, value in validation.items()},
        "psnr_mean": round(float(np.mean(list(validation.values()))), 3),
    }
