"""Quantization-aware training (QAT) of one network; it can be paused at any step, saved, and resumed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from autoq.config.spec import TrialSpec
from autoq.errors import TrialFailed
from autoq.graph.quantize import Quantized
from autoq.images.data import PatchPlan, batches
from autoq.quantizers.base import Quantizer
from autoq.system.device import channels_last, native_bfloat16
from autoq.training import together
from autoq.training.kernels.rewrite import quicker
from autoq.training.sqcl import CalibrationLoss

LEARNING_RATE = 1e-4
LEARNING_RATES = {"log_gain": 5e-3, "offset": 5e-3, "bias": 1e-3}
"""Learning rates by the last part of a parameter's name; that of the weights for all others.

log_gain (learned scales): a step changes a scale by about 0.5 %.
offset (LSQ+): a step moves the range by about 0.5 % of itself.
bias: low-bit weights shift the output mean by up to 0.03, which 64 steps at LEARNING_RATE could not correct.
"""

FULL_RATE_LOSS = 0.03
"""Initial distance (L1) to the float network's output above which the full learning rates apply; below it they shrink in
proportion. Adam's step does not depend on the gradient's magnitude, so full rates would degrade an 8-bit network that is already
nearly exact."""

EXACT_LOSS = 0.01
"""Initial distance below which bfloat16 shows: an 8-bit SRResNet x4 loses 0.05 dB more in it than in float32."""

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""What is minimized: of outputs [batch, 3, h, w] for the patches with the indices [batch]."""


@dataclass(frozen=True)
class TrainingData:
    """The training data of a study.

    Attributes:
        spec: Settings of the trials.
        plan: The order of the patches.
        patches: Inputs [pool, 3, side, side].
        teacher: What outputs are compared with, the float network's outputs [pool, 3, scale side, scale side].
    """

    spec: TrialSpec
    plan: PatchPlan
    patches: Tensor
    teacher: Tensor


class Training:
    """Distillation of the float network into a quantized network, for up to `data.spec.steps` steps.

    `loss` is the distance (L1) to the float network's output on the study's patches, unless it is replaced. Adam uses a cosine
    schedule over all steps, so a paused training has the same first steps as a complete one. Learning rates are reduced if the
    initial distance is small.
    `data.spec.sqcl` is the weight of the calibration loss of all quantizers (FQSR, equation 9). learning_rate: of the weights.
    warm_up: steps in which the learning rates rise to their full values first. exact: whether a network whose initial distance
    is below EXACT_LOSS trains in float32 on processors with bfloat16 too: it is slower, but bfloat16's error is as large there.
    """

    def __init__(
        self,
        data: TrainingData,
        quantized: Quantized,
        learning_rate: float = LEARNING_RATE,
        warm_up: int = 0,
        exact: bool = False,
    ) -> None:
        self.data, self.quantized, self.steps, self.warm_up = data, quantized, data.spec.steps, warm_up
        self.exact = exact
        self.loss: Loss = self.distance
        self.module = channels_last(quantized.module)
        self.network = self._network()
        parameters: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.module.named_parameters():
            rate = LEARNING_RATES.get(name.rpartition(".")[2], learning_rate)
            parameters.setdefault(rate, []).append(parameter)
        self.rates = list(parameters)
        self.optimizer = torch.optim.Adam([{"params": group} for group in parameters.values()], fused=True)
        self.quantizers = [module for module in self.module.modules() if isinstance(module, Quantizer)]
        self.calibration = CalibrationLoss(self.quantizers if data.spec.sqcl else ())
        self.step, self.damping = 0, 1.0

    def advance(self, until: int, stepped: Callable[[float], None] | None = None) -> None:
        """Train up to step `until`; `stepped` gets the loss of each step. Raises TrialFailed if the loss is not finite."""
        self.module.train()
        with self.calibration:
            for indices in itertools.islice(batches(self.data.plan, until), self.step, None):
                loss = self._train(torch.from_numpy(together.share(indices)).to(self.data.spec.device))
                if stepped is not None:
                    stepped(loss.item())

    def _train(self, chosen: Tensor) -> Tensor:
        """Train one step on the patches with these indices. Returns the loss."""
        for quantizer in self.quantizers:
            quantizer.progress = self.progress()
        outputs = self._outputs(chosen)
        if self.step == 0:
            self.damping = self.damped(together.mean(self.distance(outputs, chosen).detach()).item())
        loss = self.loss(outputs, chosen)
        found = together.mean(loss.detach())
        if not torch.isfinite(found):
            raise TrialFailed(f"training diverged: the loss is {found.item()} at step {self.step} of {self.steps}", self.step)
        decay = 0.5 * (1 + math.cos(math.pi * self.step / self.steps)) * min(1.0, (self.step + 1) / max(1, self.warm_up))
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.damping * decay
        self.optimizer.zero_grad()
        self.differentiate(loss)
        together.unite(self.module)
        self.optimizer.step()
        self.step += 1
        return found

    def progress(self) -> float:
        """Completed share, which quantizers that change step by step follow."""
        return self.step / self.steps

    def damped(self, distance: float) -> float:
        """Share of the learning rates that a network gets whose initial distance this is."""
        return min(1.0, distance / FULL_RATE_LOSS)

    def differentiate(self, loss: Tensor) -> None:
        """Set the gradients of a step's loss and, where it is asked for, of the calibration loss."""
        if self.calibration.quantizers:
            loss = loss + self.data.spec.sqcl * self.calibration.taken()
        loss.backward()

    def _network(self) -> nn.Module:
        """The module that computes the training outputs, with the same parameters."""
        device = self.data.spec.device
        return quicker(self.module) if device == "cpu" else self.module

    def distance(self, outputs: Tensor, chosen: Tensor) -> Tensor:
        """L1 between outputs for the patches with these indices and the float network's."""
        return nn.functional.l1_loss(outputs, self.data.teacher[chosen])

    def _outputs(self, chosen: Tensor) -> Tensor:
        device = self.data.spec.device
        inputs = self.data.patches[chosen].contiguous(memory_format=torch.channels_last)
        in_float32 = self.exact and self.damping < EXACT_LOSS / FULL_RATE_LOSS
        with torch.autocast(device, torch.bfloat16, enabled=native_bfloat16(device) and not in_float32):
            outputs: Tensor = self.network(inputs)
        return outputs.float()

    def state(self) -> dict[str, Any]:
        """Checkpoint: parameters, optimizer, step."""
        return {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "damping": self.damping,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore a checkpoint of a training of the same policy."""
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.damping = state["step"], state["damping"]
