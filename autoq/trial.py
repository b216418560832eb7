"""One trial: a policy and a number of training steps in, objectives out. Knows neither Ray nor Optuna."""

from __future__ import annotations

import copy
import functools
import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, fx, nn

from autoq.data import (
    Pair,
    PatchPlan,
    batches,
    calibration_patches,
    centre,
    check_disjoint,
    eval_images,
    image_files,
    make_pair,
    to_pixels,
    to_tensor,
    train_images,
    training_patches,
)
from autoq.errors import TrialFailed
from autoq.executed import as_executed
from autoq.export.onnx import Graph, export_graph, payload_bytes, write_qdq
from autoq.models import fresh_model, is_custom, model_info, staged_model, weights_file
from autoq.models.stages import StagePatterns
from autoq.objectives import PSNR_TO_FLOAT, score
from autoq.objectives.cost import costs
from autoq.objectives.latency import LatencyTable, structure_key
from autoq.objectives.quality import METRICS, available_metrics, load_models
from autoq.objectives.size import packed_bytes
from autoq.policy import Policy, Role
from autoq.quantize import Execution, Quantized, collect, quantize
from autoq.quantizers.clipping import Statistics
from autoq.spec import TrialResult, TrialSpec
from autoq.targets import target_info
from autoq.tracing import Traced, roles_by_stage, trace

LEARNING_RATE = 1e-4
GAIN_LEARNING_RATE = 5e-3
"""Of LSQ's log_gain: a step changes a scale by about 0.5 %."""

FULL_RATE_LOSS = 0.03
"""First loss from which on the full rates apply; below it they shrink in proportion. Adam moves every weight by
the learning rate however small the gradient, so a nearly exact 8-bit network would be shaken more than mended."""

TEACHER_BATCH = 16
"""Patches the float network sees at once while its outputs are stored."""

PSNR_CEILING = 100.0
"""Reported where two images are equal: an infinite dB is no JSON number."""

M = TypeVar("M", bound=nn.Module)

Report = Callable[[int, float], None]
"""Called during training with (step, loss)."""


@dataclass(frozen=True)
class Workbench:
    """What all trials of a study share: made once a process, never changed by a trial.

    traced and statistics stay on the CPU, where networks are quantized; patches, training inputs [pool, 3, side, side],
    and teacher, the float network's outputs on them, are on the spec's device. float_outputs: uint8, of the pairs.
    """

    spec: TrialSpec
    execution: Execution
    traced: Traced
    statistics: dict[str, Statistics]
    plan: PatchPlan
    patches: Tensor
    teacher: Tensor
    pairs: tuple[Pair, ...]
    float_outputs: tuple[np.ndarray, ...]
    metrics: tuple[str, ...]


@functools.lru_cache(maxsize=1)
def prepare(spec: TrialSpec) -> Workbench:
    """Load the network and the images, calibrate, and run the teacher on the common patches."""
    torch.set_num_threads(spec.threads)
    make_cuda_repeatable()
    target = target_info(spec.target)
    traced = trace(*staged_model(spec.model, spec.scale, spec.weights, dict(spec.layers)))
    train, evaluation = train_images(spec.data), eval_images(spec.eval_data)
    check_disjoint(train, evaluation)
    train_pairs = [make_pair(image, spec.scale) for image in train]
    pairs = tuple(make_pair(image if spec.eval_data else centre(image), spec.scale) for image in evaluation)
    plan = PatchPlan(min(spec.patches, max(1, spec.steps) * spec.batch), spec.patch, spec.batch, spec.seed, spec.sampling)
    metrics = tuple(available_metrics())
    load_models(metrics)
    _finish_imports()
    patches = training_patches(train_pairs, plan).to(spec.device)
    network = channels_last(copy.deepcopy(traced.module).to(spec.device))
    with torch.no_grad():
        parts = torch.split(patches, TEACHER_BATCH)
        teacher = torch.cat([network(part.contiguous(memory_format=torch.channels_last)) for part in parts])
    return Workbench(
        spec=spec,
        execution=Execution(target.integer_bits, target.fused_sums),
        traced=traced,
        statistics=collect(traced, calibration_patches(train_pairs, spec.seed)),
        plan=plan,
        patches=patches,
        teacher=teacher,
        pairs=pairs,
        float_outputs=tuple(to_pixels(upscale(network, pair.low, spec.device)) for pair in pairs),
        metrics=metrics,
    )


def stages_of(model: str, scale: int, weights: Path | None, layers: StagePatterns) -> dict[str, tuple[Role, ...]]:
    """stage -> the roles it has a site for, found by building and tracing the network."""
    return roles_by_stage(trace(*staged_model(model, scale, weights, layers)).sites)


def price(spec: TrialSpec, policy: Policy, frame: tuple[int, int]) -> dict[str, float]:
    """Costs of a policy on an image of (width, height) and bytes of its weights; they need no image and no training."""
    if spec.weights or is_custom(spec.model):
        network, patterns = staged_model(spec.model, spec.scale, spec.weights, dict(spec.layers))
    else:
        network, patterns = fresh_model(spec.model, spec.scale).eval(), dict(spec.layers) or model_info(spec.model).patterns
    traced, target = trace(network, patterns), target_info(spec.target)
    execution = Execution(target.integer_bits, target.fused_sums)
    blank = torch.zeros(1, 3, spec.patch, spec.patch)
    quantized = quantize(traced, policy, collect(traced, [blank]), execution)
    found = costs(traced, policy, execution, frame)
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        **asdict(found),
        "size": packed_bytes(traced, [placed.placement for placed in quantized.placed], execution),
        "size_runtime": payload_bytes(write_qdq(export_graph(traced), quantized)),
    }


def _finish_imports() -> None:
    """torch and scikit-image import parts of themselves when first used.

    Within a trial a time limit could cut that off, and the half-imported parts would fail every later trial.
    """
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([parameter])
    parameter.sum().backward()
    optimizer.step()
    blank = np.zeros((32, 32, 3), np.uint8)
    METRICS["ssim"].function(blank, blank, 2)


def input_hashes(spec: TrialSpec) -> dict[str, str]:
    """12 hexadecimal digits of the bytes of the checkpoint and of each image folder: a study must not change under way."""
    named = {"weights": weights_file(spec.model, spec.scale, spec.weights), "data": spec.data, "eval-data": spec.eval_data}
    found = {}
    for name, path in named.items():
        if path is not None:
            digest = hashlib.sha256()
            for file in image_files(path) if path.is_dir() else [path]:
                digest.update(file.name.encode() + b"\0")
                digest.update(hashlib.sha256(file.read_bytes()).digest())
            found[name] = digest.hexdigest()[:12]
    return found


def has_gpu() -> bool:
    """Whether trials can run on a GPU here."""
    return torch.cuda.is_available()


def make_cuda_repeatable() -> None:
    """Equal inputs give equal results on a GPU: float32 as such (no TF32), deterministic kernels. Nothing on a CPU."""
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def channels_last(module: M) -> M:
    """Lay out convolution weights as oneDNN's fast kernels want them; in place."""
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module


@torch.no_grad()
def upscale(module: nn.Module, low: np.ndarray, device: str) -> Tensor:
    """uint8 RGB [h, w, 3] -> float32 [1, 3, scale h, scale w] through a float or executed network on `device`."""
    output: Tensor = module(to_tensor(low).to(device).contiguous(memory_format=torch.channels_last))
    return output.cpu()


def run_trial(
    spec: TrialSpec, policy: Policy, latency: LatencyTable, graph: Graph, report: Report = lambda step, loss: None
) -> TrialResult:
    """PTQ, QAT for `spec.steps`, evaluation. Deterministic for (spec, policy, latency) on one machine.

    graph: the marked float graph of `export_graph`. A trial that diverges comes back as failed, with a reason.
    """
    bench = prepare(spec)
    torch.set_num_threads(spec.threads)
    torch.manual_seed(spec.seed)
    start = time.perf_counter()
    steps = 0 if policy.is_float else spec.steps
    try:
        quantized = quantize(bench.traced, policy, bench.statistics, bench.execution)
        quantized.module.to(spec.device)
        train(bench, quantized, steps, report)
        values = evaluate(bench, as_executed(quantized))
    except TrialFailed as failure:
        return TrialResult(state="failed", reason=str(failure), steps=failure.steps, seconds=_since(start))
    placements = [placed.placement for placed in quantized.placed]
    values["size"] = packed_bytes(bench.traced, placements, bench.execution)
    values["size_runtime"] = payload_bytes(write_qdq(graph, quantized))
    values["latency"] = latency.ms(structure_key(bench.traced, placements, bench.execution))
    cost = costs(bench.traced, policy, bench.execution, latency.frame)
    values |= {"ops": cost.ops, "bops": float(cost.bops), "peak_memory": float(cost.peak_memory)}
    values["score"] = score(values["psnr"], values["latency"])
    return TrialResult(state="complete", values=values, steps=steps, seconds=_since(start))


def _since(start: float) -> float:
    return round(time.perf_counter() - start, 3)


def train(bench: Workbench, quantized: Quantized, steps: int, report: Report = lambda step, loss: None) -> None:
    """QAT by distillation: L1 to the float network's output, Adam with a cosine schedule, common patches.

    Weights, biases and slopes learn at 1e-4, learned scales at 5e-3 in the log domain, both less where the
    first loss is small. Raises TrialFailed when the loss is not finite.
    """
    if steps == 0:
        return
    module = channels_last(quantized.module.train())
    gains = [parameter for name, parameter in module.named_parameters() if name.endswith("log_gain")]
    others = [parameter for name, parameter in module.named_parameters() if not name.endswith("log_gain")]
    groups = [{"params": others, "lr": LEARNING_RATE}, {"params": gains, "lr": GAIN_LEARNING_RATE}]
    optimizer = torch.optim.Adam([group for group in groups if group["params"]])
    rates = [group["lr"] for group in optimizer.param_groups]
    error = 1.0
    for step, indices in enumerate(batches(bench.plan, steps)):
        chosen = torch.from_numpy(indices).to(bench.spec.device)
        inputs = bench.patches[chosen].contiguous(memory_format=torch.channels_last)
        with torch.autocast(bench.spec.device, torch.bfloat16, enabled=native_bfloat16(bench.spec.device)):
            outputs = module(inputs)
        loss = nn.functional.l1_loss(outputs.float(), bench.teacher[chosen])
        if not torch.isfinite(loss):
            raise TrialFailed(f"training diverged: the loss is {loss.item()} at step {step} of {steps}", step)
        if step == 0:
            error = min(1.0, loss.item() / FULL_RATE_LOSS)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * error * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        report(step + 1, loss.item())


@functools.cache
def native_bfloat16(device: str) -> bool:
    """Whether a device multiplies bfloat16 itself; emulated bfloat16 is slower than float32."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def evaluate(bench: Workbench, module: fx.GraphModule) -> dict[str, float]:
    """Every available metric, averaged over the evaluation images, and the PSNR to the float network's output.

    Raises TrialFailed when the output is not finite.
    """
    found = []
    for pair in bench.pairs:
        output = upscale(module, pair.low, bench.spec.device)
        if not torch.isfinite(output).all():
            raise TrialFailed(f"the output for image '{pair.name}' is not finite", bench.spec.steps)
        found.append(to_pixels(output))
    scale = bench.spec.scale
    values = {
        name: float(
            np.mean([METRICS[name].function(image, pair.high, scale) for image, pair in zip(found, bench.pairs, strict=True)])
        )
        for name in bench.metrics
    }
    values = {name: min(value, PSNR_CEILING) if name == "psnr" else value for name, value in values.items()}
    broken = [name for name, value in values.items() if not np.isfinite(value)]
    if broken:
        raise TrialFailed(f"{', '.join(broken)} of the output is not a finite number", bench.spec.steps)
    errors = [np.mean((a.astype(float) - b) ** 2) / 255**2 for a, b in zip(found, bench.float_outputs, strict=True)]
    values[PSNR_TO_FLOAT] = float(np.mean([-10 * np.log10(max(error, 10 ** (-PSNR_CEILING / 10))) for error in errors]))
    return values
