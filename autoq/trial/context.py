"""What all trials of a study share: the traced network, what is known of its tensors, patches and evaluation images."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from autoq.config.objectives import OBJECTIVES
from autoq.config.policy import Policy
from autoq.config.spec import TrialSpec
from autoq.export.formats import WRITERS
from autoq.export.onnx import Graph
from autoq.graph.inference import apply, upscale
from autoq.graph.loading import load_for
from autoq.graph.quantize import Execution, Quantized, collect, quantize
from autoq.graph.trace import Traced, check_integers_only
from autoq.images import crops
from autoq.images.data import Pair, PatchPlan, calibration_patches, image_files, to_pixels, training_patches
from autoq.metrics.quality import METRICS, available_metrics, load_models
from autoq.networks import weights_file
from autoq.quantizers.range_estimators import Statistics
from autoq.system import processor
from autoq.system.device import channels_last, make_cuda_repeatable
from autoq.targets import Runner, load_target, target_info
from autoq.training.qat import TrainingData

TEACHER_BATCH = 16
"""Patches the float network sees at once while its outputs are stored."""


@dataclass(frozen=True)
class TrialContext(TrainingData):
    """What all trials of a study share: made once a process, never changed by a trial.

    traced and statistics stay on the CPU, where networks are quantized; patches and teacher are on the spec's device.
    train_pairs: what patches are cut from.
    pairs: what trials are judged on; float_outputs: uint8, of these. apart: the same of the held-out images.
    """

    execution: Execution
    traced: Traced
    statistics: dict[str, Statistics]
    train_pairs: tuple[Pair, ...]
    pairs: tuple[Pair, ...]
    float_outputs: tuple[np.ndarray, ...]
    apart: tuple[tuple[Pair, ...], tuple[np.ndarray, ...]]
    metrics: tuple[str, ...]


_known: list[TrialContext] = []
"""The last one prepared."""


def prepare(spec: TrialSpec, threads: int | None = None) -> TrialContext:
    """Load the network and the images, calibrate, and run the teacher on the common patches.

    For another seed of the last study only what depends on it is made anew. threads: for this, if not the spec's; they do not
    change what is computed.
    """
    if not _known or _known[0].spec != spec:
        _settle(spec)
        torch.set_num_threads(threads or spec.threads)
        if _known and with_seed(_known[0].spec, spec.seed) == spec:
            context = _known[0]
            context = dataclasses.replace(context, spec=spec, **_drawn(spec, context.traced, context.train_pairs))
        else:
            context = _prepared(spec)
        _known[:] = [context]
        torch.set_num_threads(spec.threads)
    return _known[0]


def portable(context: TrialContext) -> TrialContext:
    """The context on the CPU, without its network, for `adopt` in another process: torch.fx would give nodes other names."""
    return dataclasses.replace(context, traced=None, patches=context.patches.cpu(), teacher=context.teacher.cpu())  # type: ignore[arg-type]


def adopt(spec: TrialSpec, context: TrialContext) -> None:
    """Take what another process prepared as this one's; only the network is loaded again."""
    _settle(spec)
    patches, teacher = context.patches.to(spec.device), context.teacher.to(spec.device)
    _known[:] = [dataclasses.replace(context, traced=load_for(spec).traced, patches=patches, teacher=teacher)]
    load_models(context.metrics)


def _settle(spec: TrialSpec) -> None:
    """What holds for the whole process."""
    torch.set_num_threads(spec.threads)
    make_cuda_repeatable()
    _finish_imports()


def forget() -> None:
    """Begin anew with the next `prepare`."""
    _known.clear()


def _prepared(spec: TrialSpec) -> TrialContext:
    traced = load_for(spec).traced
    if target_info(spec.target).output == "uint8":
        check_integers_only(traced, spec.target)
    train_pairs, pairs = crops.searched(spec, traced.multiple)
    apart = crops.held_out(spec, traced.multiple)
    metrics = tuple(name for name in available_metrics() if spec.images == "hr" or not OBJECTIVES[name].original)
    load_models(metrics)
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
    """What depends on the seed: the patches, the teacher's outputs on them, and the statistics of calibration."""
    side, pool = traced.fitted(spec.patch), min(spec.patches, max(1, spec.steps) * spec.batch)
    plan = PatchPlan(pool, side, spec.batch, spec.seed, spec.sampling)
    patches = training_patches(train_pairs, plan).to(spec.device)
    network = channels_last(copy.deepcopy(traced.module).to(spec.device))
    with torch.no_grad():
        parts = torch.split(patches, TEACHER_BATCH)
        teacher = torch.cat([network(part.contiguous(memory_format=torch.channels_last)) for part in parts])
    statistics = collect(traced, calibration_patches(train_pairs, spec.seed, traced.fitted(24)))
    return {"plan": plan, "patches": patches, "teacher": teacher, "statistics": statistics}


def held_out(spec: TrialSpec) -> TrialContext:
    """The context with the held-out images, which no suggestion depends on, in the place of the evaluation images."""
    context = prepare(spec)
    pairs, float_outputs = context.apart
    return dataclasses.replace(context, pairs=pairs, float_outputs=float_outputs)


def execution_on(target: str, exact_weight_bits: int | None = None) -> Execution:
    """How a target runs a quantized network. exact_weight_bits: see `processor.exact_weight_bits`; of this one if not given."""
    info = target_info(target)
    exact = exact_weight_bits or processor.exact_weight_bits()
    return Execution(info.integer_bits, info.fused_sums, exact if info.overflows else info.integer_bits)


def runtime_model(target: str, graph: Graph, quantized: Quantized) -> Graph:
    """A network as the target's runtime loads it. graph: the marked float graph of `export_graph`."""
    return WRITERS[target_info(target).file](graph, quantized)


def runtime_file(context: TrialContext, graph: Graph, policy: Policy) -> bytes:
    """A policy as the target's runtime loads it, untrained: what is measured depends on formats alone."""
    quantized = quantize(context.traced, policy, context.statistics, context.execution)
    return bytes(runtime_model(context.spec.target, graph, quantized).SerializeToString())


def shipped(context: TrialContext, quantized: Quantized, model: Graph) -> Runner:
    """What a user gets: the written file in the target's runtime; where none executes it at speed, the network in torch."""
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


def with_seed(spec: TrialSpec, seed: int) -> TrialSpec:
    """The same trial with other patches, calibration and luck."""
    return spec.model_copy(update={"seed": seed})


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
