"""Quantization-aware training of one network, step by step: it can stop anywhere, be stored, and go on."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autoq.config.spec import TrialSpec
from autoq.errors import TrialFailed
from autoq.graph.quantize import Quantized
from autoq.images.data import PatchPlan, batches
from autoq.quantizers.base import Quantizer
from autoq.system.device import channels_last, native_bfloat16
from autoq.training.kernels.rewrite import quicker
from autoq.training.sqcl import CalibrationLoss

LEARNING_RATE = 1e-4
LEARNING_RATES = {"log_gain": 5e-3, "offset": 5e-3, "bias": 1e-3}
"""By the last part of a parameter's name, where it is not LEARNING_RATE. log_gain of learned scales: a step changes a scale
by about 0.5 %; offset of LSQ+: it moves the range by as much of itself. Biases: coarse weights shift whole areas by up to
0.03, which 64 steps at LEARNING_RATE could not take back."""

FULL_RATE_LOSS = 0.03
"""First loss from which on the full rates apply; below it they shrink in proportion. Adam moves every weight by
the learning rate however small the gradient, so a nearly exact 8-bit network would be shaken more than mended."""


@dataclass(frozen=True)
class TrainingData:
    """What every training of a study learns from.

    patches: training inputs [pool, 3, side, side]; teacher: the float network's outputs on them; plan: which are taken when.
    """

    spec: TrialSpec
    plan: PatchPlan
    patches: Tensor
    teacher: Tensor


class Training:
    """Distillation of the float network into a quantized one, up to `data.spec.steps` steps.

    L1 to the float network's output on the study's common patches; Adam with a cosine schedule over all steps, so a
    training that stops early and one that runs through agree as far as both go. The rates are less where the first
    loss is small. With `data.spec.sqcl` the calibration loss of all quantizers joins in, times that (FQSR, equation 9).
    """

    def __init__(self, data: TrainingData, quantized: Quantized) -> None:
        self.data, self.quantized, self.steps = data, quantized, data.spec.steps
        self.module = channels_last(quantized.module)
        self.network = self._network()
        parameters: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.module.named_parameters():
            rate = LEARNING_RATES.get(name.rpartition(".")[2], LEARNING_RATE)
            parameters.setdefault(rate, []).append(parameter)
        self.rates = list(parameters)
        self.optimizer = torch.optim.Adam([{"params": group} for group in parameters.values()], fused=True)
        self.quantizers = [module for module in self.module.modules() if isinstance(module, Quantizer)]
        self.calibration = CalibrationLoss(self.quantizers if data.spec.sqcl else ())
        self.step, self.damping = 0, 1.0

    def advance(self, until: int) -> None:
        """Train on to step `until`. Raises TrialFailed when the loss is not finite."""
        self.module.train()
        with self.calibration:
            for indices in itertools.islice(batches(self.data.plan, until), self.step, None):
                self._train(torch.from_numpy(indices).to(self.data.spec.device))

    def _train(self, chosen: Tensor) -> None:
        """One step on the patches of these indices."""
        for quantizer in self.quantizers:
            quantizer.progress = self.step / self.steps
        loss = self._loss(chosen)
        if not torch.isfinite(loss):
            raise TrialFailed(f"training diverged: the loss is {loss.item()} at step {self.step} of {self.steps}", self.step)
        if self.step == 0:
            self.damping = min(1.0, loss.item() / FULL_RATE_LOSS)
        if self.calibration.quantizers:
            loss = loss + self.data.spec.sqcl * self.calibration.taken()
        decay = 0.5 * (1 + math.cos(math.pi * self.step / self.steps))
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.damping * decay
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step += 1

    def _network(self) -> nn.Module:
        """What computes the outputs in training: the same parameters."""
        device = self.data.spec.device
        return quicker(self.module) if device == "cpu" else self.module

    def _loss(self, chosen: Tensor) -> Tensor:
        device = self.data.spec.device
        inputs = self.data.patches[chosen].contiguous(memory_format=torch.channels_last)
        with torch.autocast(device, torch.bfloat16, enabled=native_bfloat16(device)):
            outputs = self.network(inputs)
        return nn.functional.l1_loss(outputs.float(), self.data.teacher[chosen])

    def state(self) -> dict[str, Any]:
        """All it takes to go on: parameters, optimizer, step."""
        return {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "damping": self.damping,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state of a training of the same policy."""
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.damping = state["step"], state["damping"]
