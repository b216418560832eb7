"""Latencies that are predicted: held against additive and nearly additive truths."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import numpy as np
import pytest

from autoq.config.policy import FLOAT, Policy, StageQuant, TensorQuant
from autoq.config.space_file import bundled_space, load_space
from autoq.config.structure import Structure
from autoq.costs.latency import structure as structures
from autoq.costs.latency.predict import AdditiveLatency, structure_by_widths
from autoq.costs.latency.predict import fit as fit_runs
from autoq.costs.latency.table import of_images
from autoq.graph.quantize import Execution, QuantizationPlan
from autoq.graph.trace import Traced
from autoq.study.study import space_facts

STAGES = [f"layer_{number}" for number in range(20)]
INT8 = TensorQuant(8)
FLOAT_MS = 100.0
SAVES = {stage: 1.0 + number / 4 for number, stage in enumerate(STAGES)}
BOUNDARY, SKIP = 0.3, 0.8


def policy(draw: random.Random) -> Policy:
    share = draw.random()
    stages = []
    for stage in STAGES:
        quant = INT8 if draw.random() < share else FLOAT
        stages.append((stage, StageQuant(quant, quant, INT8 if draw.random() < 0.5 else FLOAT)))
    return Policy(tuple(stages))


def truth(found: Policy) -> float:
    runs = [not quant.weight.is_float for _, quant in found.stages]
    saved = sum(SAVES[stage] for (stage, _), run in zip(found.stages, runs, strict=True) if run)
    skips = sum(not quant.skip.is_float for _, quant in found.stages)
    return FLOAT_MS - saved + SKIP * skips + BOUNDARY * sum(a != b for a, b in itertools.pairwise(runs))


def fit(sample: Sequence[Policy], ms: Sequence[float], images: Sequence[str] = ()) -> AdditiveLatency:
    return fit_runs(STAGES, [structure_by_widths(each, 8, images) for each in sample], ms, FLOAT_MS, 8, images)


def test_an_additive_truth_is_found_again() -> None:
    draw = random.Random(0)
    sample = [policy(draw) for _ in range(60)]
    model = fit(sample, [truth(each) for each in sample])
    assert model.worst < 0.01
    assert model.boundary == pytest.approx(BOUNDARY, abs=0.1)
    for each in (policy(draw) for _ in range(50)):
        assert model.ms(each) == pytest.approx(truth(each), rel=0.01)
    assert model.ms(Policy(tuple((stage, StageQuant()) for stage in STAGES))) == FLOAT_MS


def test_a_stage_that_reads_the_image_runs_on_integers_with_its_weights_alone() -> None:
    """Its policy has no activation; that must not count as float."""
    draw = random.Random(0)

    def changed(found: Policy) -> Policy:
        (stage, quant), *rest = found.stages
        return Policy(((stage, StageQuant(quant.weight, FLOAT, quant.skip)), *rest))

    sample = [policy(draw) for _ in range(60)]
    model = fit([changed(each) for each in sample], [truth(each) for each in sample], images=STAGES[:1])
    assert model.worst < 0.01
    for each in (policy(draw) for _ in range(20)):
        assert model.ms(changed(each)) == pytest.approx(truth(each), rel=0.01)


def test_the_stated_error_is_that_of_structures_left_out() -> None:
    """On average over samples; measurements scatter by 3 %."""
    stated, actual = [], []
    for seed in range(8):
        draw, noise = random.Random(seed), random.Random(seed + 50)
        sample = [policy(draw) for _ in range(80)]
        model = fit(sample, [truth(each) * noise.gauss(1, 0.03) for each in sample])
        fresh = [policy(draw) for _ in range(200)]
        errors = sorted(abs(model.ms(each) / (truth(each) * noise.gauss(1, 0.03)) - 1) for each in fresh)
        stated.append((model.typical, model.worst))
        actual.append((errors[100], errors[190]))
    assert np.mean(stated, axis=0) == pytest.approx(np.mean(actual, axis=0), rel=0.2)


def test_few_measurements_leave_stages_alike() -> None:
    """Fewer structures than stages: the common saving is still found."""
    draw = random.Random(0)
    sample = [policy(draw) for _ in range(8)]
    model = fit(sample, [truth(each) for each in sample])
    assert sum(model.integers.values()) == pytest.approx(-sum(SAVES.values()), rel=0.2)


def test_structures_that_are_too_many_are_sampled(tiny_traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    space = load_space(bundled_space("srresnet"), space_facts("srresnet", "openvino-cpu"))
    everything = structures.structures(tiny_traced, space, Execution(8, True))
    assert everything.complete
    monkeypatch.setattr(structures, "MOST_COMBINATIONS", 10)
    some = structures.structures(tiny_traced, space, Execution(8, True))
    assert not some.complete
    assert set(some.policies) < set(everything.policies)
    assert some.policies == structures.structures(tiny_traced, space, Execution(8, True)).policies
    runs = {quant.weight.bits <= 8 for each in some.policies.values() for stage, quant in each.stages if stage == "body"}
    assert runs == {True, False}


def test_a_structure_says_how_every_stage_runs(tiny_traced: Traced) -> None:
    space = load_space(bundled_space("srresnet"), space_facts("srresnet", "openvino-cpu"))
    execution = Execution(8, True)
    found = set()
    for each in structures.structures(tiny_traced, space, execution).policies.values():
        structure = structures.structure_of(QuantizationPlan(tiny_traced, each, execution))
        assert structure == structure_by_widths(each, 8, of_images(space))
        assert Structure.model_validate(structure.in_words(8)) == structure, "earlier versions stored words"
        assert Structure.model_validate_json(structure.model_dump_json()) == structure
        found |= {(stage in structure.integer, stage in structure.skips) for stage in structure.stages}
    assert len(found) == 4
