"""What contradicts itself among the settings of stage two, and what is missing: said before anything is loaded.

In: what every layer said, or the settings made of it. Out: the same without what a later layer has overruled, or a
`ConfigError` in a sentence.
"""

from collections.abc import Iterable
from typing import Any

from kdpipe.schemas.contradictions import Owner, keep_if_owned, keep_the_later, means_something, need, standing
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.settings import Place, Said
from kdpipe.schemas.train_settings import TrainSettings

MODE = Owner(place=("losses", "mode"), default="hybrid", noun="mode", flag="--mode ")
LOGIT = Owner(place=("losses", "logit"), default="forward_kl", noun="loss", flag="--set losses.logit=")
ALPHA_SCHEDULE = Owner(
    place=("losses", "alpha_schedule"), default="constant", noun="schedule", flag="--set losses.alpha_schedule="
)
RATE_SCHEDULE = Owner(place=("schedule", "kind"), default="cosine", noun="schedule", flag="--set schedule.kind=")
OPTIMIZER = Owner(place=("optimizer", "kind"), default=None, noun="optimizer", flag="--optimizer ")
# Whose kinds a setting means something for.
OWNED: tuple[tuple[Place, Owner, tuple[str, ...]], ...] = (
    (("losses", "alpha"), MODE, ("hybrid",)),
    (("losses", "alpha_schedule"), MODE, ("hybrid",)),
    (("losses", "logit"), MODE, ("hybrid", "logit")),
    (("losses", "temperature"), MODE, ("hybrid", "logit")),
    (("losses", "tail_weight"), MODE, ("hybrid", "logit")),
    (("losses", "alpha_end"), ALPHA_SCHEDULE, ("wsd",)),
    (("schedule", "decay"), RATE_SCHEDULE, ("wsd",)),
    (("optimizer", "momentum"), OPTIMIZER, ("muon",)),
)
RIVALS: tuple[tuple[Place, Place, str], ...] = (
    (("run", "epochs"), ("run", "max_steps"), "how long the student learns"),
)
# Losses on states that learn a map.
MAPPED = ("cosine", "correlation", "mse")
LORA_ONLY = ("lora_rank", "lora_alpha", "lora_dropout")


def settled(said: Iterable[Said]) -> list[Said]:
    """What was said without what a later layer has overruled; two contradicting words of equal standing are refused."""
    last = {one.place: one for one in said}
    for place, owner, kinds in OWNED:
        keep_if_owned(last, place, owner, kinds)
    _drop_older_rates(last)
    for first, second, about in RIVALS:
        keep_the_later(last, first, second, about)
    lora = last.get(("student", "lora"))
    for name in LORA_ONLY:
        one = last.get(("student", name))
        if one is not None and (lora is None or lora.value is not True):
            raise ConfigError(f"{one.by} is for LoRA, which is off", hint="give --lora, or leave it out")
    return list(last.values())


def _drop_older_rates(last: dict[Place, Said]) -> None:
    """A learning rate scales all groups, also those that an earlier layer set."""
    lr = last.get(("optimizer", "lr"))
    for place in [place for place in last if place[:2] == ("optimizer", "rates")]:
        if means_something(lr) and standing(last[place]) < standing(lr):
            del last[place]


def meaningful(settings: TrainSettings) -> dict[str, Any]:
    """Settings as plain values without those that belong to other kinds: a file of them is not refused."""
    values = settings.model_dump(mode="json")
    kind_of = {owner: values[owner.place[0]][owner.place[1]] for _, owner, _ in OWNED}
    for (section, name), owner, kinds in OWNED:
        if kind_of[owner] is not None and kind_of[owner] not in kinds:
            del values[section][name]
    if not settings.student.lora:
        for name in LORA_ONLY:
            del values["student"][name]
    return values


def require(settings: TrainSettings) -> None:
    """Refuse settings that leave out what nobody can guess, or ask for what cannot be."""
    need(settings.cache.path, "which cache to learn from", "--from-cache DIR")
    need(settings.student.name, "who learns", "--student NAME: a folder, a hub id, a config.json, or tiny, 100m, 350m")
    need(settings.out, "where the run goes", "--out DIR")
    if settings.losses.hidden.router and not _meets_states(settings):
        raise ConfigError(
            "losses.hidden.router mixes teacher layers for losses on states, and none of these has a weight",
            hint="give one, for instance --set losses.weights.cosine=0.1",
        )
    _check_states(settings)
    group, size = settings.losses.hidden.group, settings.run.batch_size
    portion = settings.machine.portion
    if compares_groups(settings) and portion is not None and portion % group:
        raise ConfigError(
            f"losses over groups of {group} sequences (losses.hidden.group) do not divide portions of {portion}",
            hint=f"choose a machine.portion that is a multiple of {group}, or leave it out",
        )
    if compares_groups(settings) and size % group:
        raise ConfigError(
            f"losses over groups of {group} sequences (losses.hidden.group) do not divide batches of {size}",
            hint=f"choose a batch size that is a multiple of {group}, or another group",
        )


def _check_states(settings: TrainSettings) -> None:
    """Refuse what is said of losses on states where there are none."""
    hidden, rates = settings.losses.hidden, settings.optimizer.rates
    if hidden.pairs and not _meets_states(settings):
        raise ConfigError(
            "losses.hidden.pairs names layers for losses on states, and none of these has a weight",
            hint="give one, for instance --set losses.weights.cosine=0.1",
        )
    if rates.router is not None and not hidden.router:
        raise ConfigError(
            "optimizer.rates.router is the learning rate of a router, and there is none",
            hint="give --set losses.hidden.router=true, or leave it out",
        )
    if rates.maps is not None and not any(weights[name] for weights in _weights(settings) for name in MAPPED):
        raise ConfigError(
            f"optimizer.rates.maps is the rate of maps, which {', '.join(MAPPED)} train, and none has a weight",
            hint="give one, for instance --set losses.weights.cosine=0.1",
        )


def _weights(settings: TrainSettings) -> list[dict[str, float | None]]:
    every = [settings.losses.weights, *(phase.weights for phase in settings.run.phases)]
    return [weights.model_dump() for weights in every]


def _meets_states(settings: TrainSettings) -> bool:
    names = ("cosine", "correlation", "mse", "position_relations", "document_relations", "cka")
    return any(weights[name] for weights in _weights(settings) for name in names)


def compares_groups(settings: TrainSettings) -> bool:
    """Whether some loss is taken over groups of sequences, which must not be torn."""
    names = ("correlation", "document_relations", "cka", "router_balance")
    return any(weights[name] for weights in _weights(settings) for name in names)
