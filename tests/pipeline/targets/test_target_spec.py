"""Settings become a target spec; what cannot be is refused with a way out."""

import pytest

from kdpipe.pipeline.targets import sampler
from kdpipe.pipeline.targets.target_spec import target_spec
from kdpipe.schemas.capture_settings import TargetSettings
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.member_tables import TARGET_KINDS
from kdpipe.schemas.target_kinds import NoTargets, OutputHead, Sampled, State, Threshold, TopK, TopP
from kdpipe.schemas.targets import TargetSpec


@pytest.mark.parametrize(
    ("settings", "keep"),
    [
        (TargetSettings(), Threshold(tau=1 / 25)),
        (TargetSettings(profile="lean"), Threshold(tau=1 / 10)),
        (TargetSettings(profile="fine", max_entries=100), Threshold(tau=1 / 50, max_entries=100)),
        (TargetSettings(tau=0.3), Threshold(tau=0.3)),
        (TargetSettings(kind="sampled", draws=7), Sampled(draws=7)),
        (TargetSettings(kind="topk", top_k=300), TopK(k=300)),
        (TargetSettings(kind="topp", top_p=0.5, max_entries=9), TopP(p=0.5, max_entries=9)),
    ],
)
def test_a_kind_gets_what_is_its_own(settings: TargetSettings, keep: object) -> None:
    assert target_spec(settings, 300) == TargetSpec(keep=keep)


def test_tokens_alone_have_no_scalars() -> None:
    assert target_spec(TargetSettings(kind="none"), 300) == TargetSpec(keep=NoTargets(), temperatures=(), entropy=False)


def test_a_state_is_described_by_its_head() -> None:
    head = OutputHead(width=96, dtype="bfloat16", bias=True, soft_cap=30.0, logit_scale=0.5)
    keep = target_spec(TargetSettings(kind="state"), 300, head).keep
    assert keep == State(width=96, group=96, head_dtype="bfloat16", head_bias=True, soft_cap=30.0, logit_scale=0.5)


@pytest.mark.parametrize(
    ("settings", "has_values"),
    [
        (TargetSettings(), False),
        (TargetSettings(draw_values=True), True),
        (TargetSettings(target_temperature=2.0), True),
        (TargetSettings(kind="sampled", target_temperature=0.5), True),
        (TargetSettings(target_temperature=2.0, draw_values=False), False),
        (TargetSettings(kind="topk", target_temperature=2.0), False),
    ],
)
def test_draws_for_another_temperature_keep_values_by_default(settings: TargetSettings, has_values: bool) -> None:
    assert target_spec(settings, 300).draw_values == has_values


def test_the_target_temperature_has_its_log_z() -> None:
    spec = target_spec(TargetSettings(target_temperature=3.0, for_other_tokenizers=True), 300)
    assert spec.temperatures == (3.0,)
    assert spec.boundary
    among = TargetSettings(target_temperature=2.0, temperatures=(2.0, 4.0))
    assert target_spec(among, 300).temperatures == (2.0, 4.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (TargetSettings(kind="topk", top_k=301), "--top-k is 301, the vocabulary has 300 ids"),
        (TargetSettings(kind="topk", draw_values=True), "targets of kind topk have no draws"),
        (TargetSettings(max_entries=1), "at least one id and one draw"),
        (TargetSettings(kind="state"), "need a teacher whose logits are its last hidden state"),
        (TargetSettings(temperatures=(0.01,)), "log_z at temperature 0.01 does not fit"),
    ],
)
def test_what_cannot_be_is_refused_with_a_hint(settings: TargetSettings, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        target_spec(settings, 300)
    assert caught.value.exit_code == 2
    assert caught.value.hint


@pytest.mark.parametrize("kind", [name for name, row in TARGET_KINDS.items() if row.sampler])
def test_every_kind_with_ids_has_a_sampler_no_wider_than_it_may_be(kind: str) -> None:
    spec = target_spec(TargetSettings(kind=kind, max_entries=20), 50_000)
    made = sampler(spec.keep, 50_000)
    assert made is not None
    assert 1 <= made.width <= spec.max_entries
    small = sampler(spec.keep, 3)
    assert small is not None
    assert small.width <= 3


def test_a_kind_without_ids_has_no_sampler() -> None:
    assert sampler(NoTargets(), 300) is None
