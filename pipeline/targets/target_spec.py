"""From what a person asked for to the `targets` of the manifest: profiles become numbers, kinds get what is theirs.

In: `TargetSettings`, the size of the vocabulary, and for kind `state` the output head. Out: one `TargetSpec`.
"""

from dataclasses import dataclass
from typing import assert_never

from kdpipe.schemas.arrays import log_z_quantizer
from kdpipe.schemas.capture_settings import PROFILES, TargetSettings
from kdpipe.schemas.choices import DtypeName
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.targets import CAPTURED, KeptSpec, NoTargets, Sampled, State, TargetSpec, Threshold, TopK, TopP


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputHead:
    """What turns a teacher's last hidden state into logits, as far as kind `state` must know it."""

    width: int
    dtype: DtypeName = "float32"
    bias: bool = False
    soft_cap: float | None = None
    logit_scale: float = 1.0


def target_spec(settings: TargetSettings, vocabulary_size: int, head: OutputHead | None = None) -> TargetSpec:
    """The target spec; log_z at the target temperature is part of it, since weights are read with it."""
    if settings.kind == "none":
        return TargetSpec(keep=NoTargets(), temperatures=(), entropy=False)
    temperatures = settings.temperatures
    if settings.target_temperature not in (1.0, *temperatures):
        temperatures = (*temperatures, settings.target_temperature)
    for temperature in temperatures:
        try:
            log_z_quantizer(temperature, vocabulary_size)
        except ValueError as error:
            raise ConfigError(f"targets.temperatures: {error}", hint="leave it out of --temperatures") from error
    if settings.draw_values and not CAPTURED[settings.kind].has_draws:
        raise ConfigError(
            f"targets.draw_values asks for the log p of draws, targets of kind {settings.kind} have none",
            hint="use --targets threshold or sampled, or leave targets.draw_values out",
        )
    return TargetSpec(
        keep=_keep(settings, vocabulary_size, head),
        target_temperature=settings.target_temperature,
        temperatures=temperatures,
        draw_values=_has_values(settings),
        boundary=settings.for_other_tokenizers,
    )


def _has_values(settings: TargetSettings) -> bool:
    """Whether draws carry their own log p: the value of forward KL needs it, but at T=1, where the entropy is kept."""
    if settings.draw_values is not None:
        return settings.draw_values
    return settings.target_temperature != 1.0 and CAPTURED[settings.kind].has_draws


def _keep(settings: TargetSettings, vocabulary_size: int, head: OutputHead | None) -> KeptSpec:
    most = settings.max_entries
    match settings.kind:
        case "threshold":
            if most == 1:
                raise ConfigError(
                    "targets.max_entries is 1, targets of kind threshold keep at least one id and one draw",
                    hint="ask for 2 entries or more",
                )
            tau = settings.tau or PROFILES[settings.profile]
            return Threshold(tau=tau) if most is None else Threshold(tau=tau, max_entries=most)
        case "sampled":
            return Sampled(draws=settings.draws)
        case "topk":
            if settings.top_k > vocabulary_size:
                raise ConfigError(
                    f"--top-k is {settings.top_k:,}, the vocabulary has {vocabulary_size:,} ids",
                    hint=f"ask for {vocabulary_size:,} at most",
                )
            return TopK(k=settings.top_k)
        case "topp":
            return TopP(p=settings.top_p) if most is None else TopP(p=settings.top_p, max_entries=most)
        case "state":
            return _state(head)
        case "none":
            return NoTargets()
    assert_never(settings.kind)


def _state(head: OutputHead | None) -> State:
    if head is None:
        raise ConfigError(
            "targets of kind state need a teacher whose logits are its last hidden state times an output head",
            hint="use --targets threshold",
        )
    return State(
        width=head.width,
        group=min(128, head.width),
        head_dtype=head.dtype,
        head_bias=head.bias,
        soft_cap=head.soft_cap,
        logit_scale=head.logit_scale,
    )
