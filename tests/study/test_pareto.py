import numpy as np
import pytest

from autoq.study import pareto


def test_front_agrees_with_brute_force() -> None:
    random = np.random.default_rng(0)
    values = random.integers(0, 6, (60, 3)).astype(float)
    directions = ("minimize", "maximize", "minimize")
    signs = np.array([1, -1, 1])
    kept = set()
    for i, point in enumerate(values * signs):
        beaten = any((other <= point).all() and (other < point).any() for other in values * signs)
        first = not any((other == point).all() for other in (values * signs)[:i])
        if not beaten and first:
            kept.add(i)
    found = pareto.front(values, directions)
    assert set(found.tolist()) == kept
    assert (np.diff(values[found, 0]) >= 0).all()


def test_front_of_nothing_is_empty() -> None:
    assert pareto.front([], ("minimize", "maximize")).size == 0


def test_hypervolume_by_hand() -> None:
    # reference (10, 0): points (2, 3) and (5, 4), maximizing the second
    # boxes: 8 wide to height 3, 5 wide from 3 to 4 -> 24 + 5; reference 0 cannot scale an axis, so use 2 as base
    values, reference = [[2, 5], [5, 6]], [10, 2]
    expected = (8 * 3 + 5 * 1) / (10 * 2)
    assert pareto.hypervolume(values, ("minimize", "maximize"), reference) == pytest.approx(expected)


def test_points_outside_the_reference_add_nothing() -> None:
    assert pareto.hypervolume([[11, 5], [2, 1]], ("minimize", "maximize"), [10, 2]) == 0.0


def test_most_volume_takes_the_largest_gain_each_time() -> None:
    # within (10, 10): alone 5 x 5 = 25, 9 x 1 = 9 and 1 x 9 = 9; beside the rival at (6, 6), 25 - 16 = 9, 9 - 4 = 5 and 9 - 4 = 5
    points, directions = [[1.0, 9.0], [5.0, 5.0], [9.0, 1.0]], ("minimize", "minimize")
    assert pareto.most_volume(points, directions, [10, 10], 2) == [1, 0], "of equal gains the first"
    assert pareto.most_volume(points, directions, [10, 10], 5, [[6.0, 6.0]]) == [1, 0, 2]
    assert pareto.most_volume(points, directions, [10, 10], 1, [[4.0, 5.0]]) == [2], "gains of 3, 0 and 4: one is dominated"
    assert pareto.most_volume([], directions, [10, 10], 2) == []
