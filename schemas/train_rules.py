"""Contradictory and missing settings of stage two, found before anything is loaded.

In: the settings of every layer, or the settings made of them. Out: the settings without those that a later layer
overrides, or a `ConfigError`.
"""

from collections.abc import Iterable
from typing import Any

from kdpipe.schemas.contradictions import Owner, check_owner, check_rivals, is_given, precedence, require_values
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.settings import Assignment, Key
from kdpipe.schemas.train_settings import TrainSettings

MODE = Owner(key=("losses", "mode"), default="hybrid", noun="mode", flag="--mode ")
LOGIT = Owner(key=("losses", "logit"), default="forward_kl", noun="loss", flag="--loss ")
ALPHA_SCHEDULE = Owner(
    key=("losses", "alpha_schedule"), default="constant", noun="schedule", flag="--set losses.alpha_schedule="
)
RATE_SCHEDULE = Owner(key=("schedule", "kind"), default="cosine", noun="schedule", flag="--schedule ")
OPTIMIZER = Owner(key=("optimizer", "kind"), default=None, noun="optimizer", flag="--optimizer ")
# The kinds that a setting applies to.
OWNED: tuple[tuple[Key, Owner, tuple[str, ...]], ...] = (
    (("losses", "alpha"), MODE, ("hybrid",)),
    (("losses", "alpha_schedule"), MODE, ("hybrid",)),
    (("losses", "logit"), MODE, ("hybrid", "logit")),
    (("losses", "temperature"), MODE, ("hybrid", "logit")),
    (("losses", "tail_weight"), MODE, ("hybrid", "logit")),
    (("losses", "alpha_end"), ALPHA_SCHEDULE, ("wsd",)),
    (("schedule", "decay"), RATE_SCHEDULE, ("wsd",)),
    (("optimizer", "momentum"), OPTIMIZER, ("muon",)),
)
RIVALS: tuple[tuple[Key, Key, str], ...] = ((("run", "epochs"), ("run", "max_steps"), "the length of training"),)
# Losses on hidden states with a trainable map.
MAPPED = ("cosine", "correlation", "mse")
LORA_ONLY = ("lora_rank", "lora_alpha", "lora_dropout")


def resolve(assignments: Iterable[Assignment]) -> list[Assignment]:
    """Drop settings that a later layer overrides; contradictions within one layer are refused."""
    last = {assignment.key: assignment for assignment in assignments}
    for key, owner, kinds in OWNED:
        check_owner(last, key, owner, kinds)
    _drop_older_rates(last)
    for first, second, about in RIVALS:
        check_rivals(last, first, second, about)
    lora = last.get(("student", "lora"))
    for name in LORA_ONLY:
        assignment = last.get(("student", name))
        if assignment is not None and (lora is None or lora.value is not True):
            raise ConfigError(f"{assignment.source} applies to LoRA, which is off", hint="give --lora, or omit it")
    return list(last.values())


def _drop_older_rates(last: dict[Key, Assignment]) -> None:
    """A learning rate scales all groups, also those of an earlier layer."""
    lr = last.get(("optimizer", "lr"))
    for key in [key for key in last if key[:2] == ("optimizer", "rates")]:
        if is_given(lr) and precedence(last[key]) < precedence(lr):
            del last[key]


def applicable(settings: TrainSettings) -> dict[str, Any]:
    """Settings as plain values without those of other kinds, so that a file of them is accepted."""
    values = settings.model_dump(mode="json")
    kind_of = {owner: values[owner.key[0]][owner.key[1]] for _, owner, _ in OWNED}
    for (section, name), owner, kinds in OWNED:
        if kind_of[owner] is not None and kind_of[owner] not in kinds:
            del values[section][name]
    if not settings.student.lora:
        for name in LORA_ONLY:
            del values["student"][name]
    return values


def require(settings: TrainSettings) -> None:
    """Refuse missing settings without a default, and impossible combinations."""
    require_values(
        (settings.cache.path, "cache", "--from-cache DIR"),
        (settings.student.name, "student", "--student NAME"),
        (settings.out, "output directory", "--out DIR"),
    )
    if settings.losses.hidden.router and not _uses_states(settings):
        raise ConfigError(
            "losses.hidden.router applies to losses on hidden states, and all their weights are 0",
            hint="give one, for instance --set losses.weights.cosine=0.1",
        )
    _check_states(settings)
    group, size = settings.losses.hidden.group, settings.run.batch_size
    portion = settings.machine.portion
    if compares_groups(settings) and portion is not None and portion % group:
        raise ConfigError(
            f"machine.portion {portion} is not a multiple of losses.hidden.group {group}",
            hint=f"choose a machine.portion that is a multiple of {group}, or omit it",
        )
    if compares_groups(settings) and size % group:
        raise ConfigError(
            f"batch size {size} is not a multiple of losses.hidden.group {group}",
            hint=f"choose a batch size that is a multiple of {group}, or another group",
        )


def _check_states(settings: TrainSettings) -> None:
    """Refuse settings of losses on hidden states where these have no weight."""
    hidden, rates = settings.losses.hidden, settings.optimizer.rates
    if hidden.pairs and not _uses_states(settings):
        raise ConfigError(
            "losses.hidden.pairs applies to losses on hidden states, and all their weights are 0",
            hint="give one, for instance --set losses.weights.cosine=0.1",
        )
    if rates.router is not None and not hidden.router:
        raise ConfigError(
            "optimizer.rates.router needs a router",
            hint="give --set losses.hidden.router=true, or omit it",
        )
    if rates.maps is not None and not any(weights[name] for weights in _weights(settings) for name in MAPPED):
        raise ConfigError(
            f"optimizer.rates.maps needs the loss {' or '.join(MAPPED)}, and all their weights are 0",
            hint="give one, for instance --set losses.weights.cosine=0.1",
        )


def _weights(settings: TrainSettings) -> list[dict[str, float | None]]:
    every = [settings.losses.weights, *(phase.weights for phase in settings.run.phases)]
    return [weights.model_dump() for weights in every]


def _uses_states(settings: TrainSettings) -> bool:
    names = ("cosine", "correlation", "mse", "position_relations", "document_relations", "cka")
    return any(weights[name] for weights in _weights(settings) for name in names)


def compares_groups(settings: TrainSettings) -> bool:
    """Whether a loss compares sequences of a group, which must stay in one batch."""
    names = ("correlation", "document_relations", "cka", "router_balance")
    return any(weights[name] for weights in _weights(settings) for name in names)
