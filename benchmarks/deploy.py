"""autoq's front and its rivals, deployed: one float network, one set of images, one machine, one run.

python benchmarks/deploy.py STUDY --eval-data Set5     STUDY: a finished search for openvino-cpu, or openvino-cpu-bf16:
                                                       a name or an absolute path

PSNR, NIQE   on the images of --eval-data (NIQE where its model file is), or on those that the study's trials were judged on
shipped      bytes of the tensors that are stored: in autoq's package, of a rival in the file itself
loaded       bytes of the tensors in the file that the runtime loads
file         all bytes of that file, or files
speed        float32's milliseconds in OpenVINO over this one's, in turn with it, and the 95 % interval of the median;
             in brackets over float32 in the same runtime, where that is another

A rival dominates a point of autoq's front if it is no worse in PSNR, payload and milliseconds and better in one, beyond 0.02 dB,
1 % and 5 %; a point dominates a rival by the same rule. Payload is what is shipped; the same is said of what is loaded. The float
network counts among the rivals, not in the front. Rivals are calibrated with autoq's calibration patches; NNCF's accuracy
control validates on the images that the study's trials were judged on, which chose the front, too.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.metadata
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

try:
    from benchmarks.rivals import BFLOAT16, FAILURES, OPENVINO, RIVALS, Given, named, onnx_file, run_in
except ModuleNotFoundError as error:
    print(f"error: {error.name} is not installed; type pip install -c constraints.txt -e '.[bench]'", file=sys.stderr)
    sys.exit(2)
from autoq.api.studies import check_inputs, open_study
from autoq.config.policy import Policy, all_float
from autoq.config.validators import frame_size
from autoq.costs.latency.measure import machine, measure
from autoq.costs.size import packed_bytes
from autoq.deploy.verify import ROUNDS
from autoq.errors import InputError
from autoq.export.onnx import export_graph
from autoq.images.data import Pair, calibration_patches, check_disjoint, eval_images, make_pair, train_images
from autoq.images.pixels import to_input, to_pixels
from autoq.metrics.quality import METRICS, averaged, judged, why_unavailable
from autoq.study.results import FLOAT_NAME, point_name
from autoq.study.study import Study
from autoq.system.processor import exact_weight_bits
from autoq.targets import why_unusable
from autoq.trial.context import TrialContext, prepare, runtime_file, runtime_model
from autoq.trial.run import trained
from autoq.tuning.baselines import baselines
from benchmarks.documents import reserve_output
from benchmarks.runs import original
from benchmarks.standing import INT8, MIXED, Found, Group, Point, document, line, table, verdict

VALIDATION = 8
"""Images, at most, that accuracy control validates on: it looks at all of them for every layer."""

PACKAGES = ("openvino", "nncf", "onnxruntime")
FEATURES = ("avx512_vnni", "avx_vnni", "amx_int8", "avx512_bf16", "amx_bf16")
"""Of the processor, by torch's names: instructions that multiply 8-bit integers, and bfloat16."""


def investigate(study: Study, images: Path | None, frame: tuple[int, int], rounds: int) -> Found:
    """Build rivals and points, judge all of them, and measure them in turn with float32."""
    spec, threads = study.spec, study.spec.latency_threads
    context = prepare(spec.trial)
    pairs = judging_pairs(context, images)
    metrics, remark = judging_metrics(pairs, spec.trial.scale)
    with tempfile.TemporaryDirectory() as folder:
        rivals, failed = build_rivals(context, Path(folder))
        points = [*rivals, *own_points(study, context)]
        for point in points:
            note(f"judging {point.name}")
            run = point.file.load(threads)
            outputs = [to_pixels(run(to_input(pair.low))[0]) for pair in pairs]
            border = spec.trial.scale
            point.quality = averaged(
                [judged(metrics, image, pair.high, border) for image, pair in zip(outputs, pairs, strict=True)]
            )
        note("measuring latencies")
        files = {point.name: (lambda file=point.file: file) for point in points}
        float_ms, samples = measure(files, points[0].file, lambda file: file.load(threads), frame, rounds)
    for point in points:
        point.samples = samples[point.name]
    searched = {original(pair).tobytes() for pair in context.pairs}
    seen = sum(original(pair).tobytes() in searched for pair in pairs)
    return Found(points, failed, float_ms, remark, len(pairs), seen)


def judging_pairs(context: TrialContext, images: Path | None) -> tuple[Pair, ...]:
    """Images that all files are judged on, none of them trained on."""
    if images is None:
        return context.pairs
    found = eval_images(images.resolve())
    check_disjoint(train_images(context.spec.data), found)
    return tuple(make_pair(image, context.spec.scale) for image in found)


def judging_metrics(pairs: Sequence[Pair], border: int) -> tuple[tuple[str, ...], str]:
    """PSNR, and NIQE where it can be said; else why not."""
    least = METRICS["niqe"].least + 2 * border
    small = [pair.name for pair in pairs if min(original(pair).shape[:2]) < least]
    reason = why_unavailable("niqe") or (f"image '{small[0]}' is too small for niqe" if small else "")
    metrics = ("psnr",) if reason else ("psnr", "niqe")
    return metrics, reason


def build_rivals(context: TrialContext, folder: Path) -> tuple[list[Point], dict[str, str]]:
    """Every rival in every runtime that it is run in; and of those that could not be built, or do not run here, the error."""
    spec = context.spec
    train = [make_pair(image, spec.scale) for image in train_images(spec.data)]
    exact = all_float(dict.fromkeys(layer.stage for layer in context.traced.layers))
    given = Given(
        network=runtime_file(context, export_graph(context.traced), exact),
        calibration=[patch.numpy() for batch in calibration_patches(train, spec.seed) for patch in batch.split(1)],
        validation=[(to_input(pair.low), original(pair)) for pair in context.pairs[:VALIDATION]],
        scale=spec.scale,
        reduced=exact_weight_bits() < 8,
    )
    points, failed = [], {}
    for number, (name, rival) in enumerate(RIVALS.items()):
        note(f"building {name}")
        own = folder / str(number)
        own.mkdir()
        try:
            with contextlib.redirect_stdout(sys.stderr):
                file = rival.build(given, own)
        except FAILURES as error:
            failed[name] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            continue
        for usual in rival.runtimes:
            runtime = run_in(name, usual, spec.target)
            if (reason := why_unusable(runtime)) is not None:
                failed[named(name, runtime)] = reason
                continue
            points.append(Point(named(name, runtime), "rival", dataclasses.replace(file, runtime=runtime), file.payload))
    return points, failed


def own_points(study: Study, context: TrialContext) -> list[Point]:
    """The front without the float network, and the baselines of this machine's line, as `autoq export` writes them."""
    if study.spec.trial.exact_weight_bits > exact_weight_bits():
        raise InputError(
            f"study '{study.name}': its 8-bit weights overflow on this processor, which has no VNNI; search again here"
        )
    records = study.results().front
    front = [record for record in records if record.name != FLOAT_NAME]
    if not front:
        raise InputError(
            f"study '{study.name}': its front holds nothing but the float network; give a study with trials that ended"
        )
    wanted: list[tuple[str, Group, Policy, int]] = [
        (point_name(record), "front", Policy.from_dict(record.policy), record.steps) for record in front
    ]
    line = baselines(study.space.facts, first_last_16=True)
    known = {name for name, *_ in wanted}
    wanted += [(name, "baseline", line[name], study.spec.trial.steps) for name in (INT8, MIXED) if name not in known]
    graph, points = export_graph(context.traced), []
    for name, group, policy, steps in wanted:
        note(f"training {name}: {steps} steps")
        quantized = trained(context, policy, steps)
        file = onnx_file(runtime_model(context.spec.target, graph, quantized).SerializeToString(), context.spec.target)
        packed = packed_bytes(quantized.plan)
        points.append(Point(name, group, file, packed))
    return points


def note(words: str) -> None:
    """What is being done."""
    print(f"{time.strftime('%H:%M:%S')} {words}", file=sys.stderr, flush=True)


def circumstances(study: Study, images: Path | None, frame: tuple[int, int]) -> dict[str, Any]:
    """What the figures belong to."""
    spec, able = study.spec, torch.cpu.get_capabilities()
    searched_on = str(spec.trial.eval_data or "photographs of scikit-image")
    return {
        "study": study.name,
        "model": f"{spec.trial.model} x{spec.trial.scale}",
        "weights": str(spec.trial.weights or "bundled"),
        "judged on": str(images or searched_on),
        "front chosen on": searched_on,
        "frame": "{}x{}".format(*frame),
        "threads": spec.latency_threads,
        "machine": machine(),
        "features": [name for name in FEATURES if able.get(name)],
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "study", help="a finished study for openvino-cpu or openvino-cpu-bf16: its name under studies/, or an absolute path"
    )
    parser.add_argument("--eval-data", type=Path, help="images that all files are judged on; the study's own if not given")
    parser.add_argument("--frame", help="input size WxH that latency is measured at; the study's if not given")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="times that every file is run")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    tell = reserve_output(options.json)
    try:
        study = open_study(options.study)
        if study.spec.trial.target not in (OPENVINO, BFLOAT16):
            raise InputError(
                f"study '{study.name}': it is for {study.spec.trial.target}; give a study for {OPENVINO} or {BFLOAT16}"
            )
        check_inputs(study.name, study.spec)
        frame = frame_size(options.frame) if options.frame else study.spec.frame
        found = investigate(study, options.eval_data, frame, options.rounds)
    except InputError as error:
        parser.exit(2, f"error: {error}\n")
    about = circumstances(study, options.eval_data, frame)
    if options.json:
        tell(document(found, about))
        return
    print("\n".join(f"{name}: {value or 'none'}" for name, value in about.items()))
    print(f"of {found.images} images the study's trials were judged on {found.seen}")
    print("\n".join(["", *table(found), *([f"no NIQE: {found.remark}"] if found.remark else [])]))
    print("\n".join(["", *verdict(found), "", *line(found)]))


if __name__ == "__main__":
    main()
