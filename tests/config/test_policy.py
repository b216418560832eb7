import pytest

from autoq.config.policy import FLOAT, Policy, TensorQuant, uniform
from autoq.errors import PolicyError
from autoq.networks import model_info

STAGES = model_info("srgan").stages


def test_shorthand_gives_a_role_bits_only_where_the_stage_has_a_site() -> None:
    policy = uniform("4/6/8", STAGES)
    assert policy.label == "4 4/6/8 4/6 4/6"
    assert policy.stage("feature_extraction").activation == FLOAT
    assert policy.stage("body").weight == TensorQuant(4, "minmax", "minmax", "channel", signed=True)


def test_two_numbers_leave_the_skip_float() -> None:
    assert uniform("8/8", STAGES).stage("body").skip == FLOAT


def test_shorthand_by_stage() -> None:
    text = "feature_extraction=16/16,body=4/8/8,upsampling=8/8,reconstruction=16/16"
    assert uniform(text, STAGES).label == "16 4/8/8 8/8 16/16"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("8", "policy '8': expected two or three widths in bits, weight/activation or weight/activation/skip, for example 8/8/8"),
        (
            "8/x/8",
            "policy '8/x/8': expected two or three widths in bits, weight/activation or weight/activation/skip, for example 8/8/8",
        ),
        ("99/8/8", "bits 99: expected 1 to 16, or 32 for float"),
        (
            "bdoy=8/8",
            "policy: no stage 'bdoy' (did you mean 'body'?); type one of feature_extraction, body, upsampling, reconstruction",
        ),
        (
            "body=8/8",
            "policy 'body=8/8': no bits for feature_extraction, upsampling, reconstruction; give every stage as stage=w/a/s",
        ),
    ],
)
def test_malformed_shorthand(text: str, message: str) -> None:
    with pytest.raises(PolicyError) as error:
        uniform(text, STAGES)
    assert str(error.value) == message


def test_dict_round_trip_and_hash() -> None:
    policy = uniform("4/8/32", STAGES, "lsq", "mse")
    again = Policy.from_dict(policy.to_dict())
    assert again == policy
    assert again.hash == policy.hash
    assert policy.hash != uniform("4/8/32", STAGES, "lsq", "percentile").hash


def test_hash_is_the_same_on_every_machine() -> None:
    assert uniform("8/8/8", {"only": ("weight",)}).hash == "8b4ba445337b"


def test_from_dict_names_an_unknown_role() -> None:
    with pytest.raises(
        PolicyError, match=r"stages\.body\.wieght: expected one of weight, activation, skip \(did you mean 'weight'"
    ):
        Policy.from_dict({"stages": {"body": {"wieght": {"bits": 8}}}})
