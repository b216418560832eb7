"""The latency table of a study whose structures are too many to be measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autoq.config.events import Events
from autoq.config.policy import ROLES, Policy, all_float, uniform
from autoq.config.spec import StudySpec, TrialSpec
from autoq.costs.latency import structure
from autoq.errors import InputError
from autoq.networks import model_info
from autoq.study.study import Study, space_facts
from autoq.tuning.baselines import baselines
from autoq.tuning.initial_trials import probe, propose_initial_trials
from autoq.tuning.latency_pass import AGAIN_ROUNDS, check_table
from autoq.tuning.options import space_by
from tests.contexts import latency_pass

SPACE = """
roles:
  weight: {bits: [4, 8, 16], quantizer: lsq, clipping: minmax}
  activation: {bits: [8, 16], quantizer: lsq, clipping: minmax}
  skip: {bits: [8, 32], quantizer: lsq, clipping: minmax}
"""

STAGES = model_info("srresnet").stages


@pytest.fixture
def study(tmp_path: Path, tiny_weights: Path, small_images: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Study:
    """A study of single layers of a tiny network, in a world where few structures are too many."""
    monkeypatch.setattr(structure, "MOST_COMBINATIONS", 10)
    monkeypatch.setattr(structure, "LEAST_SAMPLED", 8)
    (tmp_path / "space.yaml").write_text(SPACE)
    trial = TrialSpec(model="srresnet", scale=2, weights=tiny_weights, steps=1, patches=4, **small_images)
    space = space_by(trial, tmp_path / "space.yaml", "layer")
    spec = StudySpec(
        trial=trial.model_copy(update={"layers": tuple(space.layers.items())}),
        space=space.to_dict(),
        by="layer",
        objectives=("size", "latency", "psnr"),
        frame=(32, 24),
        replications=1,
    )
    return Study.create(tmp_path / "study", spec, {"command": "", "python": "", "machine": "", "versions": {}})


def test_baselines_start_from_what_suits_their_widths() -> None:
    found = baselines(space_facts("srgan", "openvino-cpu"), first_last_16=True)
    formats = [quant.role(role) for policy in found.values() for _, quant in policy.stages for role in ROLES]
    starts = {(each.bits < 8, each.clipping) for each in formats if not each.is_float}
    assert starts == {(False, "minmax"), (True, "mse")}


def test_what_was_not_measured_is_predicted_and_the_front_is_measured(study: Study) -> None:
    notes: list[str] = []
    events = Events()
    events.note = notes.append  # type: ignore[method-assign, assignment]
    latency = latency_pass(study, events)
    context = latency.context
    table = latency.measure()
    assert table.rest is not None
    assert table.rest.images == ("head_0",)
    assert len(notes) == 1
    assert f"is predicted from {table.rest.sample} measured ones" in notes[0]
    check_table(table, study.spec, context)

    def key(policy: Policy) -> str:
        return structure.structure_key(context.plan_for(policy))

    new = next(policy for policy in study.space.enumerate() if key(policy) not in table.entries)
    assert table.ms(key(new), new) == table.rest.ms(new) > 0
    probes = probe(context, latency.graph, study.space)
    found = propose_initial_trials(context, study.space, study.spec.objectives, table, 4, probes)
    seeds = [Policy.from_dict(seed) for seed in found.initial_trials]
    assert len(seeds) == 4
    for seed in seeds:
        study.space.parameters(seed)
    fuller = latency.add(table, [*seeds, new])
    assert fuller.rest is not None
    assert fuller.rest.sample == len(fuller.entries) - 1 > table.rest.sample
    assert all(fuller.ms(key(each), each) == fuller.entries[key(each)].ms for each in (*seeds, new))
    assert fuller.entries.items() >= table.entries.items(), "what was measured stays"
    assert latency.add(fuller, seeds) is fuller
    exact = all_float(study.space.choices)
    samples = latency.remeasure([exact, new]).samples
    assert samples.keys() == {new.hash, exact.hash}
    assert all(len(each) >= AGAIN_ROUNDS and min(each) > 0 for each in samples.values())
    assert AGAIN_ROUNDS >= 6, "of fewer no interval holds the median in 95 % of cases"


def test_a_table_of_another_network_does_not_serve(study: Study) -> None:
    latency = latency_pass(study)
    table = latency.measure()
    assert table.rest is not None
    fewer = table.rest.model_copy(update={"integers": dict(list(table.rest.integers.items())[1:])})
    with pytest.raises(InputError, match="lacks .* structures of this network and space"):
        check_table(table.model_copy(update={"rest": fewer, "entries": {}}), study.spec, latency.context)
    with pytest.raises(InputError, match="measured for scale 4, this study has 2"):
        check_table(table.model_copy(update={"scale": 4}), study.spec, latency.context)


def test_a_search_of_layers_begins_like_an_earlier_one_of_stages(study: Study) -> None:
    """A layer is taken to be like the stage of the network that it is a part of."""
    latency = latency_pass(study)
    context, graph, table = latency.context, latency.graph, latency.measure()
    earlier = uniform("body=4/16/32,feature_extraction=8/8/8,upsampling=16/16/16,reconstruction=8/8/8", STAGES, "lsq", "minmax")
    found = propose_initial_trials(
        context, study.space, ("size", "psnr"), table, 4, probe(context, graph, study.space), (), [earlier]
    )
    seed = Policy.from_dict(found.initial_trials[0])
    own = {layer.stage: layer.path for layer in context.traced.layers}
    assert len(own) == len(seed.stages) > len(STAGES)
    for stage, quant in seed.stages:
        whole = own[stage].split(".")[0]
        bits = {"head": 8, "body": 4, "fuse": 4, "up": 16, "tail": 8}[whole]
        assert quant.weight.bits == bits, stage
        if whole == "body":
            assert quant.activation.bits == 16, stage
