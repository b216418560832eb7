"""The context that all trials of a study share: traced network, statistics of its tensors, patches and evaluation images."""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autoq.config.objectives import OBJECTIVES
from autoq.config.policy import Policy
from autoq.config.spec import TrialSpec
from autoq.export.formats import WRITERS
from autoq.export.onnx import Graph
from autoq.graph.bias_correction import channel_means, correct_biases
from autoq.graph.inference import apply, upscale
from autoq.graph.loading import load_for
from autoq.graph.quantize import Execution, QuantizationPlan, Quantized, collect, quantize
from autoq.graph.rounding import Curvature, curvatures, round_weights
from autoq.graph.trace import Traced, check_integers_only
from autoq.images import crops
from autoq.images.data import Pair, PatchPlan, calibration_patches, image_files, to_pixels, training_patches
from autoq.metrics.quality import METRICS, available_metrics
from autoq.networks import weights_file
from autoq.quantizers.range_estimators import Statistics
from autoq.system import processor
from autoq.system.device import channels_last, make_cuda_repeatable
from autoq.targets import Runner, load_target, target_info
from autoq.training.qat import TrainingData

CORRECTION_BATCHES = 2
"""Batches of calibration that weights are rounded and biases corrected with."""

TEACHER_BATCH = 16
"""Batch size of the float network when its outputs are stored."""


@dataclass(frozen=True)
class TrialContext(TrainingData):
    """Data that all trials of a study share: prepared once a process, never changed by a trial.

    Attributes:
        execution: How the target runs a quantized network.
        traced: The float network. It stays on the CPU, where networks are quantized.
        statistics: Of calibration, by node, on the CPU.
        calibration: Some of the images of calibration [n, 3, side, side], on the CPU. Patches and teacher outputs are on the
            spec's device.
        train_pairs: Images that patches are cut from.
        pairs: Images that trials are judged on.
        float_outputs: The float network's outputs for these, uint8.
        apart: The same two of the held-out images.
        metrics: Names of the metrics that trials are judged by.
    """

    execution: Execution
    traced: Traced
    statistics: dict[str, Statistics]
    calibration: Tensor
    train_pairs: tuple[Pair, ...]
    pairs: tuple[Pair, ...]
    float_outputs: tuple[np.ndarray, ...]
    apart: tuple[tuple[Pair, ...], tuple[np.ndarray, ...]]
    metrics: tuple[str, ...]

    def plan_for(self, policy: Policy) -> QuantizationPlan:
        """A policy on this network and target."""
        return QuantizationPlan(self.traced, policy, self.execution)

    def held_out(self) -> TrialContext:
        """The context with the held-out images, which no suggestion depends on, as evaluation images."""
        pairs, float_outputs = self.apart
        return dataclasses.replace(self, pairs=pairs, float_outputs=float_outputs)

    def with_seed(self, seed: int) -> TrialContext:
        """The context of the same trials with another seed: other patches and calibration. Itself for its own seed."""
        if seed == self.spec.seed:
            return self
        spec = self.spec.model_copy(update={"seed": seed})
        return dataclasses.replace(self, spec=spec, **_drawn(spec, self.traced, self.train_pairs))

    def quantized(self, policy: Policy) -> Quantized:
        """The network with a policy's quantizers in it, calibrated and untrained."""
        return quantize(self.traced, policy, self.statistics, self.execution)

    @functools.cached_property
    def curvatures(self) -> dict[str, Curvature]:
        """What rounding has to know of the float network."""
        return curvatures(self.traced, self.calibration)

    @functools.cached_property
    def channel_means(self) -> dict[str, Tensor]:
        """What bias correction has to know of the float network."""
        return channel_means(self.traced, self.calibration)

    def rounded(self, policy: Policy) -> Quantized:
        """The calibrated network with weights rounded by GPTQ, and biases that make up for the shift of every layer's mean."""
        quantized = self.quantized(policy)
        round_weights(quantized, self.curvatures)
        correct_biases(quantized, self.channel_means, self.calibration)
        return quantized


def prepare(spec: TrialSpec, threads: int | None = None) -> TrialContext:
    """Load the network and the images, calibrate, and run the teacher on the common patches.

    Args:
        spec: The definition of the trials.
        threads: Threads for this work, if not the spec's; they do not change the result.
    """
    _settle(spec)
    torch.set_num_threads(threads or spec.threads)
    context = _prepared(spec)
    torch.set_num_threads(spec.threads)
    return context


def portable(context: TrialContext) -> TrialContext:
    """The context on the CPU, without its network, for `adopt` in another process: torch.fx would rename nodes there."""
    return dataclasses.replace(context, traced=None, patches=context.patches.cpu(), teacher=context.teacher.cpu())  # type: ignore[arg-type]


def adopt(context: TrialContext) -> TrialContext:
    """The context of another process in this one; only the network is loaded again."""
    spec = context.spec
    _settle(spec)
    patches, teacher = context.patches.to(spec.device), context.teacher.to(spec.device)
    adopted = dataclasses.replace(context, traced=load_for(spec).traced, patches=patches, teacher=teacher)
    return adopted


def _settle(spec: TrialSpec) -> None:
    """Set up the process: threads, repeatable CUDA, imports."""
    torch.set_num_threads(spec.threads)
    make_cuda_repeatable()
    _finish_imports()


def _prepared(spec: TrialSpec) -> TrialContext:
    traced = load_for(spec).traced
    if target_info(spec.target).output == "uint8":
        check_integers_only(traced, spec.target)
    train_pairs, pairs = crops.searched(spec, traced.multiple)
    apart = crops.held_out(spec, traced.multiple)
    metrics = tuple(name for name in available_metrics() if spec.images == "hr" or not OBJECTIVES[name].original)
    network = channels_last(copy.deepcopy(traced.module).to(spec.device))

    def upscaled(judged: tuple[Pair, ...]) -> tuple[np.ndarray, ...]:
        return tuple(to_pixels(upscale(network, pair.low, spec.device)) for pair in judged)

    return TrialContext(
        spec=spec,
        execution=execution_on(spec.target, spec.exact_weight_bits),
        traced=traced,
        train_pairs=tuple(train_pairs),
        pairs=pairs,
        float_outputs=upscaled(pairs),
        apart=(apart, upscaled(apart)),
        metrics=metrics,
        **_drawn(spec, traced, train_pairs),
    )


def _drawn(spec: TrialSpec, traced: Traced, train_pairs: Sequence[Pair]) -> dict[str, Any]:
    """The fields that depend on the seed: patches, the teacher's outputs on them, and the statistics of calibration."""
    side, pool = traced.fitted(spec.patch), min(spec.patches, max(1, spec.steps) * spec.batch)
    plan = PatchPlan(pool, side, spec.batch, spec.seed, spec.sampling)
    patches = training_patches(train_pairs, plan).to(spec.device)
    network = channels_last(copy.deepcopy(traced.module).to(spec.device))
    with torch.no_grad():
        parts = torch.split(patches, TEACHER_BATCH)
        teacher = torch.cat([network(part.contiguous(memory_format=torch.channels_last)) for part in parts])
    calibration = calibration_patches(train_pairs, spec.seed, traced.fitted(24))
    statistics = collect(traced, calibration)
    some = torch.cat(calibration[:CORRECTION_BATCHES])
    return {"plan": plan, "patches": patches, "teacher": teacher, "statistics": statistics, "calibration": some}


def execution_on(target: str, exact_weight_bits: int | None = None) -> Execution:
    """How a target runs a quantized network; `exact_weight_bits` defaults to this processor's (`processor.exact_weight_bits`)."""
    info = target_info(target)
    exact = exact_weight_bits or processor.exact_weight_bits()
    return Execution(info.integer_bits, info.fused_sums, exact if info.overflows else info.integer_bits)


def runtime_model(target: str, graph: Graph, quantized: Quantized) -> Graph:
    """The ONNX model that the target's runtime loads, from the marked float graph of `export_graph`."""
    return WRITERS[target_info(target).file](graph, quantized)


def runtime_file(context: TrialContext, graph: Graph, policy: Policy) -> bytes:
    """The file of an untrained policy, for measurements: latency depends on formats alone."""
    return bytes(runtime_model(context.spec.target, graph, context.quantized(policy)).SerializeToString())


def shipped(context: TrialContext, quantized: Quantized, model: Graph) -> Runner:
    """Run the exported file in the target's runtime, or the network in torch where no runtime executes it at speed."""
    if not target_info(context.spec.target).executes:
        return simulated(context, quantized)
    return load_target(context.spec.target).load(model.SerializeToString(), context.spec.threads)


def simulated(context: TrialContext, quantized: Quantized) -> Runner:
    """The fake-quantized network as training computes it, in evaluation mode."""
    module = copy.deepcopy(quantized.module).eval()

    def run(image: np.ndarray) -> np.ndarray:
        output: np.ndarray = apply(module, torch.from_numpy(image), context.spec.device).numpy()
        return output

    return run


def _finish_imports() -> None:
    """Import the parts of torch and scikit-image that they import on first use.

    A time limit within a trial could interrupt such an import, and the half-imported parts would fail every later trial.
    """
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([parameter])
    parameter.sum().backward()
    optimizer.step()
    blank = np.zeros((32, 32, 3), np.uint8)
    METRICS["ssim"].function(blank, blank, 2)


def input_hashes(spec: TrialSpec) -> dict[str, str]:
    """12 hexadecimal digits for the checkpoint and each image folder, to notice that they changed during a study."""
    named = {
        "weights": weights_file(spec.model, spec.scale, spec.weights),
        "data": spec.data,
        "eval-data": spec.eval_data,
        "test-data": spec.test_data,
    }
    found = {}
    for name, path in named.items():
        if path is not None:
            digest = hashlib.sha256()
            for file in image_files(path) if path.is_dir() else [path]:
                digest.update(file.name.encode() + b"\0")
                digest.update(hashlib.sha256(file.read_bytes()).digest())
            found[name] = digest.hexdigest()[:12]
    return found
