"""Target settings to the `targets` of the manifest: profiles become numbers, each kind gets its own settings.

In: `TargetSettings`, the size of the vocabulary, and for kind `state` the output head. Out: a `TargetSpec`.
"""

from kdpipe.schemas.arrays import log_z_quantizer
from kdpipe.schemas.capture_settings import TargetSettings
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.target_kinds import OutputHead
from kdpipe.schemas.targets import CAPTURED, TargetSpec


def target_spec(
    settings: TargetSettings, vocabulary_size: int, head: OutputHead | None = None, full_distribution: bool = True
) -> TargetSpec:
    """The target spec, with log_z at the target temperature, at which weights are read."""
    kind = CAPTURED[settings.kind]
    if not kind.has_teacher:
        return TargetSpec(keep=kind.from_settings({}, vocabulary_size, None), temperatures=(), entropy=False)
    temperatures = settings.temperatures
    if settings.target_temperature not in (1.0, *temperatures):
        temperatures = (*temperatures, settings.target_temperature)
    if not full_distribution:
        _check_top_ids(settings, temperatures)
    for temperature in temperatures:
        try:
            log_z_quantizer(temperature, vocabulary_size)
        except ValueError as error:
            raise ConfigError(f"targets.temperatures: {error}", hint="omit it from --temperatures") from error
    if settings.draw_values and not kind.has_draws:
        raise ConfigError(
            f"targets.draw_values stores the log p of draws, targets of kind {settings.kind} have no draws",
            hint="use --targets threshold or sampled, or omit targets.draw_values",
        )
    return TargetSpec(
        keep=kind.from_settings(dict(settings), vocabulary_size, head),
        target_temperature=settings.target_temperature,
        temperatures=temperatures,
        draw_values=_has_values(settings),
        boundary=settings.for_other_tokenizers,
        entropy=full_distribution,
    )


def _check_top_ids(settings: TargetSettings, temperatures: tuple[float, ...]) -> None:
    """Refuse what a teacher that returns only its most probable ids cannot give."""
    needs = [f"--targets {settings.kind}"] if CAPTURED[settings.kind].full_distribution else []
    needs += ["--temperatures"] if temperatures else []
    needs += ["--for-other-tokenizers"] if settings.for_other_tokenizers else []
    if needs:
        raise ConfigError(
            f"this teacher returns only its most probable ids, {' and '.join(needs)} need its full distribution",
            hint="use --targets topk without the others, or another teacher.backend",
        )


def _has_values(settings: TargetSettings) -> bool:
    """Whether draws store their own log p: the value of forward KL needs it, except at T=1, where the entropy is
    stored.
    """
    if settings.draw_values is not None:
        return settings.draw_values
    return settings.target_temperature != 1.0 and CAPTURED[settings.kind].has_draws
