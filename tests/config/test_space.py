from pathlib import Path

import optuna
import pytest
import yaml

from autoq.config.space_file import bundled_space, load_space, named_spaces, parse_space
from autoq.errors import SpaceError
from autoq.networks import MODELS
from autoq.quantizers import QUANTIZERS
from autoq.study.study import space_facts

FACTS = space_facts("srgan", "openvino-cpu")
SMALL = {
    "roles": {"weight": {"bits": [8, 4]}, "activation": {"bits": 8}, "skip": {"bits": [8, 32]}},
    "stages": {"reconstruction": {"weight": {"bits": 16}}},
}


def test_size_counts_distinct_policies() -> None:
    space = parse_space(SMALL, FACTS, "space")
    # weight 2 x (body: skip 2) x weight 2 x reconstruction 1
    assert space.size() == 2 * (2 * 2) * 2
    policies = list(space.enumerate())
    assert len(policies) == len({policy.hash for policy in policies}) == space.size()


def test_a_stage_overrides_the_roles_and_a_float_layer_has_no_activation() -> None:
    policy = next(parse_space(SMALL, FACTS, "space").enumerate())
    assert policy.stage("reconstruction").label == "16"
    assert policy.stage("upsampling").label == "4/8"


def test_bits_are_suggested_as_ordered_integers_and_names_as_categories() -> None:
    space = load_space(bundled_space("srgan"), FACTS)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(40):
        trial = study.ask()
        policy = space.suggest(trial)
        for name, distribution in trial.distributions.items():
            expected = (
                optuna.distributions.IntDistribution if name.endswith("bits") else optuna.distributions.CategoricalDistribution
            )
            assert isinstance(distribution, expected)
        for stage, roles in space.choices.items():
            bits = policy.stage(stage).weight.bits
            assert bits == roles["weight"].bits[trial.params[f"{stage}.weight.bits"]]
            # what cannot matter is not asked
            assert (f"{stage}.weight.quantizer" in trial.params) is (bits <= 8)
            assert f"{stage}.activation.bits" not in trial.params or bits <= 8


def test_every_suggestion_is_among_the_enumerated_policies() -> None:
    space = parse_space(SMALL, FACTS, "space")
    allowed = set(space.enumerate())
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    assert {space.suggest(study.ask()) for _ in range(200)} == allowed


@pytest.mark.parametrize("model", sorted(MODELS))
def test_bundled_space_is_valid_and_writes_itself_back(model: str) -> None:
    facts = space_facts(model, "openvino-cpu")
    space = load_space(bundled_space(model), facts)
    assert parse_space(space.to_dict(), facts, "again") == space
    assert space.choices["body"]["weight"].bits == (4, 6, 8, 16)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages: {bdoy: {}}", "stages.bdoy: srgan has no stage 'bdoy' (did you mean 'body'?); known: feature_extraction, body, upsampling, reconstruction"),
        ("stages: {upsampling: {skip: {bits: 8}}}", "stages.upsampling.skip: stage 'upsampling' of srgan has no role 'skip'; known: weight, activation"),
        ("roles: {weight: {bit: 8}}", "roles.weight.bit: unknown key 'bit'"
         " (did you mean 'bits'?); known: bits, quantizer, clipping, granularity, signed"),
        ("roles: {weight: {bits: 8}}", "body.activation: no bits; give bits: [4, 8] or bits: 8"),
        ("roles: {weight: {bits: eight}}", "feature_extraction.weight.bits: 'eight': expected whole numbers, 1 to 16, or 32 for float"),
        ("roles: {weight: {bits: 1}}", "feature_extraction.weight.bits: 1: quantizer 'minmax' supports 2 to 16 bits"),
        ("roles: {weight: {bits: 8, quantizer: lqs}}", f"feature_extraction.weight.quantizer: unknown quantizer 'lqs' (did you mean 'lsq'?); type one of {', '.join(sorted(QUANTIZERS))}"),
        ("roles: {weight: {bits: 8, quantizer: [lsq, pact]}}", "feature_extraction.weight.quantizer: 'pact' supports unsigned activations and skips, not weights;"
         f" give some of {', '.join(name for name, info in QUANTIZERS.items() if 'weight' in info.serves)}"),
        ("roles: {weight: {bits: [4, 8], quantizer: dorefa}}", "feature_extraction.weight.bits: 8: quantizer 'dorefa' supports weights of up to 7 bits on targets with 8-bit integers"),
        ("roles: {weight: {bits: [2, 4], quantizer: ternary}}", "feature_extraction.weight.bits: 4: quantizer 'ternary' supports 2 bits only"),
        ("roles: {weight: {bits: []}}", "feature_extraction.weight.bits: empty list; give at least one value"),
        ("model: edsr", "model: this space is for 'edsr', but the network is 'srgan'; give another --space"),
        ("roles: {weight: {bits: 8, signed: false}}", "feature_extraction.weight.signed: openvino-cpu executes only true, found 'False'; type signed: true"),
        ("output: int4", "body.activation: no bits; give bits: [4, 8] or bits: 8"),
        ("[1, 2]", "file: found '[1, 2]', expected a mapping with model, layers, roles, stages, output"),
    ],
)  # fmt: skip
def test_malformed_space(text: str, message: str) -> None:
    data = yaml.safe_load(text)
    if isinstance(data, dict) and "stages" in data:
        data["roles"] = SMALL["roles"]
    if text.startswith("output"):
        data["roles"] = {"weight": {"bits": 8}}
    with pytest.raises(SpaceError) as error:
        parse_space(data, FACTS, "my.yaml")
    assert str(error.value) == f"my.yaml: {message}"


def test_a_quantizer_is_checked_against_the_role_s_signedness() -> None:
    def space(quantizer: str, signed: bool) -> dict[str, object]:
        format = {"bits": 8, "quantizer": quantizer, "signed": signed}
        return {"roles": {"weight": {"bits": 1, "quantizer": "binary"}, "activation": format, "skip": {"bits": 8}}}

    found = parse_space(space("pact", False), FACTS, "my.yaml")
    assert next(found.enumerate()).stage("body").activation.quantizer == "pact"
    with pytest.raises(SpaceError, match="body.activation.quantizer: 'pact' supports unsigned activations and skips, not signed"):
        parse_space(space("pact", True), FACTS, "my.yaml")


def test_a_missing_or_broken_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(
        SpaceError, match=r"cannot read '.*none\.yaml': No such file or directory; type --space with the path of a YAML file"
    ):
        load_space(tmp_path / "none.yaml", FACTS)
    (tmp_path / "bad.yaml").write_text("roles: {")
    with pytest.raises(SpaceError, match=r"bad\.yaml: not YAML"):
        load_space(tmp_path / "bad.yaml", FACTS)


@pytest.mark.parametrize("name", named_spaces())
def test_a_space_by_name_serves_every_network(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    target = "npu-uint8" if name == "uint8_npu" else "openvino-cpu"
    for model in MODELS:
        assert load_space(Path(name), space_facts(model, target)).size() > 1
    (tmp_path / name).write_text("roles: {weight: {bits: 8}, activation: {bits: 8}, skip: {bits: 8}}")
    assert load_space(Path(name), space_facts("srgan", target)).size() == 1, "a file of that name goes before it"
