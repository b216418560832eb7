"""Which trials train on."""

from autoq.config.schedule import BRACKET, INITIAL, bracket, initial_trials, rungs
from autoq.tuning.successive_halving import promoted

REFERENCE = [10.0, 10.0]


def test_rungs_are_geometric_and_end_with_all_steps() -> None:
    assert rungs(24) == (3, 24)
    assert rungs(100) == (12, 100)
    assert rungs(400) == (6, 50, 400)
    assert rungs(16) == (2, 16)
    assert rungs(15) == (15,)
    assert rungs(0) == (0,)


def test_seeds_leave_trials_to_the_sampler() -> None:
    assert all(initial_trials(budget) <= budget / 2 for budget in range(1, 100))
    assert max(initial_trials(budget) for budget in range(1, 100)) == INITIAL


def test_seeds_are_alone_and_the_others_in_cohorts() -> None:
    assert [list(bracket(number, 3, (4, 16))) for number in (0, 2)] == [[0], [2]]
    for number in range(3, 3 + BRACKET):
        assert bracket(number, 3, (4, 16)) == range(3, 3 + BRACKET)
    assert bracket(3 + BRACKET, 3, (4, 16)).start == 3 + BRACKET
    assert bracket(7, 0, (16,)) == bracket(7, 0, ()) == range(7, 8)


def test_who_is_dominated_stops() -> None:
    assert promoted([[1, 5], [5, 1], [6, 6]], [], REFERENCE, 4) == [0, 1]
    assert promoted([[1, 5], [5, 1], [6, 2]], [[4, 1]], REFERENCE, 4) == [0]
    assert promoted([[5, 5]], [[1, 1]], REFERENCE, 4) == []


def test_at_most_as_many_go_on_as_there_are_places() -> None:
    front = [[1, 9], [2, 7], [4, 4], [7, 2], [9, 1], [3, 6], [6, 3], [5, 3.5]]
    going = promoted(front, [], REFERENCE, 4)
    assert len(going) == 4
    assert 2 in going
    assert promoted(front, [[3.9, 3.9]], REFERENCE, 4) != going


def test_of_equal_trials_one_goes_on() -> None:
    assert promoted([[2, 2], [2, 2]], [], REFERENCE, 4) == [0]


def test_the_reference_widens_to_the_worst() -> None:
    assert promoted([[1, 11], [5, 5]], [], REFERENCE, 1) == [1]
    assert promoted([[11, 1], [12, 0.5], [30, 0.4]], [], REFERENCE, 2) == [0, 1], "not the first ones, those that add most"
