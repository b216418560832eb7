import signal
import subprocess
import sys
import time

import pytest
from torch import fx, nn

from autoq.errors import TrialFailed
from autoq.system.limits import limits, private_memory


def test_a_trial_that_takes_too_long_is_interrupted() -> None:
    started = time.monotonic()
    with pytest.raises(TrialFailed, match=r"exceeded the time limit of 0\.2 s per trial \(--timeout\)"), limits(0.2, None):
        time.sleep(30)
    assert time.monotonic() - started < 20


def test_the_reason_is_the_limit_alone_where_a_graph_is_interrupted() -> None:
    class Sleeper(fx.Interpreter):
        def run_node(self, n: fx.Node) -> None:
            time.sleep(30)

    with pytest.raises(TrialFailed) as caught, limits(0.1, None):
        Sleeper(fx.symbolic_trace(nn.Identity())).run(0)
    assert str(caught.value) == "exceeded the time limit of 0.1 s per trial (--timeout)"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interruption_that_python_drops_is_repeated() -> None:
    class Slow:
        def __del__(self) -> None:
            time.sleep(0.4)

    def work() -> None:
        Slow()
        time.sleep(30)

    with pytest.raises(TrialFailed, match="exceeded the time limit"), limits(0.1, None):
        work()


def test_a_trial_that_needs_too_much_memory_is_interrupted() -> None:
    bound = private_memory() + 0.1
    hoard: list[bytearray] = []

    def grow() -> None:
        for _ in range(40):
            hoard.append(bytearray(b"x") * 2**25)
            time.sleep(0.05)

    with pytest.raises(TrialFailed, match=r"exceeded the memory limit of .* GiB per worker \(--memory\)"), limits(None, bound):
        grow()
    assert 0.1 < len(hoard) / 32 < 1, "interrupted on the way, not at the end"


def test_signals_that_come_late_do_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoq.system.limits.MEMORY_PERIOD", 0)
    before = signal.getsignal(signal.SIGUSR1)
    for _ in range(100):
        with pytest.raises(TrialFailed), limits(None, 0.0):
            time.sleep(30)
    assert signal.getsignal(signal.SIGUSR1) == before


def test_within_the_limits_nothing_happens_and_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGALRM), signal.getsignal(signal.SIGUSR1)
    with limits(60, private_memory() + 10):
        time.sleep(0.3)
    assert (signal.getsignal(signal.SIGALRM), signal.getsignal(signal.SIGUSR1)) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


IN_TURN = """
import gc, os, signal
from autoq.export.onnx import export_graph
from autoq.networks import fresh_model, model_info
from autoq.config.policy import uniform
from autoq.graph.quantize import quantize
from autoq.targets import load_target
from autoq.graph.trace import trace
from autoq.trial.context import execution_on, runtime_model

traced, target = trace(fresh_model("espcn", 2).eval(), model_info("espcn").patterns), "openvino-cpu"
quantized = quantize(traced, uniform("32/32/32", model_info("espcn").stages), {}, execution_on(target))
file = runtime_model(target, export_graph(traced), quantized).SerializeToString()
targets = [load_target(target) for _ in range(3)]
runs = [each.load(file, 1) for each in targets]
while runs:
    del runs[0], targets[0]
    gc.collect()
signal.signal(signal.SIGALRM, lambda number, frame: print("heard"))
os.kill(os.getpid(), signal.SIGALRM)
"""


def test_a_signal_reaches_a_process_that_has_run_files_in_openvino() -> None:
    """Where cores end in another order than they began OpenVINO leaves signals a freed stack."""
    found = subprocess.run([sys.executable, "-c", IN_TURN], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "heard\n"), found.stderr
