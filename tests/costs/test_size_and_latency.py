import itertools
from pathlib import Path

import numpy as np
import pytest

from autoq.config.policy import Policy, uniform
from autoq.config.space_file import bundled_space, load_space, parse_space
from autoq.config.structure import Structure
from autoq.costs.latency import measure, structure, table
from autoq.costs.size import packed_bytes
from autoq.errors import InputError
from autoq.graph.quantize import Execution, QuantizationPlan
from autoq.graph.trace import Traced
from autoq.networks import model_info
from autoq.study.study import space_facts

INT8 = Execution(8, True)
FLOAT_POLICY = Policy(())
STAGES = model_info("srresnet").stages


def size(traced: Traced, bits: str, execution: Execution = INT8) -> int:
    return packed_bytes(QuantizationPlan(traced, uniform(bits, STAGES), execution))


def test_size_by_hand(tiny_traced: Traced) -> None:
    # 9x9 head 3->8, two 3x3 of the block and the closing one 8->8, upsampling 8->32, 9x9 tail 8->3; three PReLU slopes
    weights = [8 * 3 * 81, 8 * 8 * 9, 8 * 8 * 9, 8 * 8 * 9, 32 * 8 * 9, 3 * 8 * 81]
    channels = 8 + 8 + 8 + 8 + 32 + 3
    slopes = 3
    assert size(tiny_traced, "32/32/32") == 4 * (sum(weights) + channels + slopes)
    # float16 weights, float biases and slopes
    assert size(tiny_traced, "16/32/32") == 2 * sum(weights) + 4 * (channels + slopes)
    # w4: packed per tensor, a scale a channel, a bias a channel; then per quantized tensor a scale and a zero point:
    # image, four inner layer inputs, tail's; sums: the head's output, two sums, and nothing for the fused operands
    packed = sum(-(-count * 4 // 8) for count in weights) + 4 * channels + 4 * (channels + slopes)
    tensors = 1 + 2 + 1 + 1 + 1  # image; conv1 and conv2 inputs of the block; closing conv, upsampling, tail inputs
    assert size(tiny_traced, "4/4/32") == packed + 5 * tensors


def test_three_bit_weights_are_packed_tightly(tiny_traced: Traced) -> None:
    assert size(tiny_traced, "4/8/32") - size(tiny_traced, "3/8/32") == sum(
        -(-n * 4 // 8) - -(-n * 3 // 8) for n in (1944, 576, 576, 576, 2304, 1944)
    )


def test_the_space_has_forty_structures(tiny_traced: Traced) -> None:
    """2 (head) x 5 (body: float or int8, skip float or int8, its grid shared with the layers or not) x 2 x 2."""
    space = load_space(bundled_space("srresnet"), space_facts("srresnet", "openvino-cpu"))
    found = structure.structures(tiny_traced, space, INT8).policies
    assert len(found) == 40
    words = {structure.structure_of(QuantizationPlan(tiny_traced, policy, INT8)).in_words(8) for policy in found.values()}
    assert len(words) == 32


BUNDLED = {
    "weight": {"bits": [4, 6, 8, 16]},
    "activation": {"bits": [4, 6, 8, 16], "quantizer": ["minmax", "lsq"], "clipping": ["minmax", "percentile", "mse"]},
    "skip": {"bits": [8, 32], "quantizer": ["minmax", "lsq"], "clipping": ["minmax", "percentile", "mse"]},
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"activation": {"bits": [6, 8]}, "skip": {"bits": [4, 8]}},
        {"activation": {"bits": [4, 8], "clipping": "mse"}},
        {"activation": {"bits": [4, 8], "quantizer": "lsq"}, "skip": {"bits": [4, 8], "quantizer": ["minmax", "lsq"]}},
    ],
    ids=["bundled", "shared above the narrowest", "one clipping", "one quantizer"],
)
def test_any_policy_of_a_space_has_a_measured_structure(tiny_traced: Traced, changes: dict) -> None:
    space = parse_space({"roles": {**BUNDLED, **changes}}, space_facts("srresnet", "openvino-cpu"), "space")
    known = structure.structures(tiny_traced, space, INT8).policies
    random = np.random.default_rng(0)
    options = {stage: list(space.stage_quants(stage)) for stage in space.choices}
    for _ in range(100):
        stages = tuple((stage, choices[random.integers(len(choices))]) for stage, choices in options.items())
        policy = type(next(iter(known.values())))(stages)
        assert structure.structure_key(QuantizationPlan(tiny_traced, policy, INT8)) in known


def test_widths_quantizers_and_clipping_do_not_change_the_structure(tiny_traced: Traced) -> None:
    def key(bits: str, quantizer: str, clipping: str) -> str:
        return structure.structure_key(QuantizationPlan(tiny_traced, uniform(bits, STAGES, quantizer, clipping), INT8))

    keys = {
        key(bits, q, c) for bits, q, c in itertools.product(("4/4/32", "8/8/32", "6/4/32"), ("minmax", "lsq"), ("mse", "minmax"))
    }
    assert len(keys) == 1
    assert key("16/32/32", "minmax", "minmax") not in keys


def test_measurement_corrects_for_a_machine_that_slows_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that runs slower with every call, in the end by 15 %: structures that take half the float time come out at half."""
    clock = {"now": 0.0, "speed": 1.0}
    monkeypatch.setattr("autoq.costs.latency.measure.time.perf_counter", lambda: clock["now"])

    def load(file: bytes):
        def run(image: np.ndarray) -> np.ndarray:
            clock["now"] += float(file) * clock["speed"]
            clock["speed"] *= 1.0005
            return image

        return run

    files = {f"s{number}": (lambda: b"0.05") for number in range(2 * measure.GROUP)}
    floats, samples = measure.measure(files, b"0.1", load, (16, 16))
    assert len(floats) == 2 * measure.ROUNDS
    for values in samples.values():
        assert np.median(values) == pytest.approx(np.median(floats) / 2, rel=0.01)


def test_table_is_checked_and_read_back(tmp_path: Path) -> None:
    found = table.LatencyTable(
        model="srgan",
        target="openvino-cpu",
        runtime="x",
        frame=(96, 96),
        threads=2,
        machine="m",
        entries=measure.entries({"a": (Structure(), [3.0, 1.0, 2.0])}),
    )
    (tmp_path / "latency.json").write_text(found.model_dump_json())
    assert table.read_table(tmp_path / "latency.json").ms("a", FLOAT_POLICY) == 2.0
    with pytest.raises(InputError, match="latency table has no structure b"):
        found.ms("b", FLOAT_POLICY)
    with pytest.raises(InputError, match="measured for frame 96x96, this study has 64x64"):
        found.check("srgan", 4, "openvino-cpu", (64, 64), 2)
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(InputError, match="not a latency table; give a study's latency.json"):
        table.read_table(tmp_path / "bad.json")
