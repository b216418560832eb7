"""The additive model on made-up losses, against brute force."""

from __future__ import annotations

import ctypes
import itertools

import numpy as np
import pytest
from scipy.optimize import milp

from autoq.config.policy import FLOAT, Policy, StageQuant
from autoq.config.space import SearchSpace
from autoq.config.space_file import parse_space
from autoq.study import pareto
from autoq.study.study import space_facts
from autoq.tuning import additive

STAGES = {
    "head": ("weight",),
    "body": ("weight", "activation", "skip"),
    "tail": ("weight", "activation"),
}


def space(weight: object = (4, 6, 8), activation: object = (4, 8), skip: object = (8,), **more: object) -> SearchSpace:
    roles = {
        "weight": {"bits": list(weight), "quantizer": ["minmax", "lsq"], "clipping": ["minmax", "mse"]},  # type: ignore[call-overload]
        "activation": {"bits": list(activation), "quantizer": "lsq"},  # type: ignore[call-overload]
        "skip": {"bits": list(skip), "quantizer": "lsq"},  # type: ignore[call-overload]
    }
    return parse_space({"roles": roles, **more}, space_facts("srresnet", "openvino-cpu", STAGES), "test")


def loss_of(quant: StageQuant) -> float:
    """Errors of the roles add up; mse clips better; a float role has none."""
    bits = {"weight": quant.weight, "activation": quant.activation, "skip": quant.skip}
    error = sum(4.0 ** -min(role.bits, 16) for role in bits.values() if role != FLOAT)
    return error * (1 if quant.weight.clipping == "mse" else 1.5)


def measured(found: SearchSpace) -> dict[str, dict[StageQuant, float]]:
    return {stage: {quant: loss_of(quant) for quant in additive.probes(found, stage)} for stage in found.choices}


def costs_of(policy: Policy) -> list[float]:
    sizes = {"head": 1.0, "body": 5.0, "tail": 2.0}
    return [
        sum(sizes[stage] * quant.weight.bits for stage, quant in policy.stages),
        sum(sizes[stage] * quant.weight.bits * min(quant.activation.bits, 16) for stage, quant in policy.stages),
    ]


def test_probes_differ_from_the_widest_integers_in_one_role() -> None:
    found = space(weight=(4, 8, 16), skip=(8, 32))
    anchor, *others = additive.probes(found, "body")
    assert (anchor.weight.bits, anchor.activation.bits, anchor.skip.bits) == (8, 8, 8)
    assert len(others) == len(set(others)) == (2 * 2 - 1) + 1 + 1 + 1  # weights by width and clipping, 16, activation, skip
    for probe in others:
        changed = [role for role in ("weight", "activation", "skip") if probe.role(role) != anchor.role(role)]
        assert changed in (["weight"], ["activation"], ["skip"], ["weight", "activation"])
        if changed == ["weight", "activation"]:
            assert (probe.weight.bits, probe.activation) == (16, FLOAT)
        assert {quant.quantizer for quant in (probe.weight, probe.activation, probe.skip) if quant.bits <= 8} == {"lsq"}


def test_a_measured_format_has_the_loss_that_was_measured() -> None:
    found = space(weight=(4, 8, 16), skip=(8, 32))
    for stage, losses in measured(found).items():
        for quant, loss in losses.items():
            assert additive.stage_loss(found, stage, losses, quant) == pytest.approx(loss)


def test_roles_add_up_whatever_the_quantizer() -> None:
    found = space()
    losses = {quant: loss_of(quant) for quant in additive.probes(found, "body")}
    for quant in found.stage_quants("body"):
        if quant.weight.clipping == found.choices["body"]["weight"].clipping[0]:
            predicted = additive.stage_loss(found, "body", losses, quant)
            assert predicted == pytest.approx(loss_of(quant), rel=1e-9)


def brute_force(found: SearchSpace) -> set[tuple[float, ...]]:
    """The front of all policies, by loss and costs."""
    losses = measured(found)
    points = []
    for policy in found.enumerate():
        loss = sum(additive.stage_loss(found, stage, losses[stage], quant) for stage, quant in policy.stages)
        points.append([loss, *costs_of(policy)])
    chosen = pareto.front(points, ["minimize"] * 3)
    return {tuple(round(value, 7) for value in points[index]) for index in chosen}


def test_the_predicted_front_is_that_of_all_policies() -> None:
    found = space()
    front = additive.predicted_front(additive.options(found, measured(found), costs_of))
    assert {tuple(round(value, 7) for value in (each.loss, *each.costs)) for each in front} == brute_force(found)
    for each in front:
        assert list(each.costs) == pytest.approx(costs_of(each.policy))


def test_a_program_finds_points_of_the_same_front(monkeypatch: pytest.MonkeyPatch) -> None:
    found = space()
    monkeypatch.setattr(additive, "MAX_COMBINATIONS", 1)
    front = additive.predicted_front(additive.options(found, measured(found), costs_of))
    points = {tuple(round(value, 7) for value in (each.loss, *each.costs)) for each in front}
    everything = brute_force(found)
    assert points <= everything
    assert len(points) >= 6
    ends = [min(point[axis] for point in everything) for axis in (0, 1)]
    assert [min(point[axis] for point in points) for axis in (0, 1)] == pytest.approx(ends)


def test_what_the_solver_prints_is_no_result(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Its C++ code prints past Python, into a buffer of its own."""
    libc, solve = ctypes.CDLL(None), milp

    def noisy(*problem: object, **settings: object) -> object:
        libc.printf(b"from C\n")
        return solve(*problem, **settings)

    monkeypatch.setattr("autoq.tuning.additive.milp", noisy)
    monkeypatch.setattr(additive, "MAX_COMBINATIONS", 1)
    found = space()
    assert additive.predicted_front(additive.options(found, measured(found), costs_of))
    libc.printf(b"later\n")
    libc.fflush(None)
    out, err = capfd.readouterr()
    assert out == "later\n"
    assert err.count("from C\n") == additive.BUDGETS**2


def test_many_stages_that_do_not_add_up_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = space()
    monkeypatch.setattr(additive, "MAX_COMBINATIONS", 1)
    with pytest.raises(ValueError, match="does not add up"):
        additive.predicted_front(additive.options(found, measured(found), costs_of), lambda kinds: 1.0)


def test_a_cost_of_all_stages_together_counts() -> None:
    found = space()
    options = additive.options(found, measured(found), lambda policy: costs_of(policy)[:1], lambda quant: (quant.weight.bits == 8,))
    joint = lambda kinds: float(len(set(kinds)))  # noqa: E731 - one where all stages are alike
    front = additive.predicted_front(options, joint)
    assert {each.costs[-1] for each in front} == {1.0, 2.0}
    for a, b in itertools.permutations(front, 2):
        assert not (a.loss <= b.loss and all(x <= y for x, y in zip(a.costs, b.costs, strict=True)))


def test_policies_in_the_order_of_their_worth() -> None:
    found = space()
    front = additive.predicted_front(additive.options(found, measured(found), costs_of))
    first, *_ = chosen = additive.by_worth(front, additive.lost_psnr(1e-3), [1e3, 1e5], 5)
    assert len({each.policy for each in chosen}) == 5
    assert additive.by_worth(front, additive.lost_psnr(1e-3), [1e3, 1e5], 1) == [first]
    falls = [10 * np.log10(1 + each.loss / 1e-3) * (1 - additive.BROUGHT_BACK) for each in front]
    alone = [(3 - fall) * (1e3 - each.costs[0]) * (1e5 - each.costs[1]) for fall, each in zip(falls, front, strict=True)]
    assert first == front[int(np.argmax(alone))]


def test_the_nearest_policy_of_another_space() -> None:
    small, large = space(weight=(4, 8), activation=(8,)), space(weight=(4, 6, 8, 16), activation=(4, 6, 8, 16), skip=(8, 32))
    for policy in small.enumerate():
        assert additive.nearest(small, policy) == policy
    for policy in list(large.enumerate())[::97]:
        found = additive.nearest(small, policy)
        small.parameters(found)
        for stage, quant in policy.stages:
            assert found.stage(stage).weight.bits == (4 if quant.weight.bits <= 6 else 8)
            if quant.weight.bits <= 8:
                assert found.stage(stage).weight.quantizer == quant.weight.quantizer
    other = Policy((("body", next(small.stage_quants("body"))), ("neck", next(small.stage_quants("tail")))))
    found = additive.nearest(small, other)
    assert found.stage("body") == other.stage("body")
    assert found.stage("head") == additive.anchor(small, "head")


def test_fidelity_is_worth_what_lies_above_its_floor() -> None:
    """30 dB of error, of which training takes GAINED: what ends below the floor is worth nothing."""
    quality = additive.lost_fidelity(30.0)
    assert quality.of(1e-3) == pytest.approx(-30 - additive.GAINED)
    assert quality.of(10 ** (-(29.9 - additive.GAINED) / 10)) > quality.corner == -30
