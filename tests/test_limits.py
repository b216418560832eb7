import signal
import time

import pytest

from autoq.errors import TrialFailed
from autoq.limits import held, limits


def test_a_trial_that_takes_too_long_is_interrupted() -> None:
    started = time.monotonic()
    with pytest.raises(TrialFailed, match=r"took longer than the limit of 0\.2 s a trial \(--timeout\)"), limits(0.2, None):
        time.sleep(30)
    assert time.monotonic() - started < 5


def test_a_trial_that_needs_too_much_memory_is_interrupted() -> None:
    bound = held() + 0.1
    hoard: list[bytearray] = []

    def grow() -> None:
        for _ in range(40):
            hoard.append(bytearray(b"x") * 2**25)
            time.sleep(0.05)

    with pytest.raises(TrialFailed, match=r"needs more memory than the bound of .* GiB a worker \(--memory\)"), limits(None, bound):
        grow()
    assert 0.1 < len(hoard) / 32 < 1, "interrupted on the way, not at the end"


def test_signals_that_come_late_do_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoq.limits.MEMORY_PERIOD", 0)
    before = signal.getsignal(signal.SIGUSR1)
    for _ in range(100):
        with pytest.raises(TrialFailed), limits(None, 0.0):
            time.sleep(30)
    assert signal.getsignal(signal.SIGUSR1) == before


def test_within_the_limits_nothing_happens_and_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGALRM), signal.getsignal(signal.SIGUSR1)
    with limits(60, held() + 10):
        time.sleep(0.3)
    assert (signal.getsignal(signal.SIGALRM), signal.getsignal(signal.SIGUSR1)) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
