"""What counts when: the weights, temperature and order in force at each optimizer step.

In: `TrainSettings`, the `StepPlan`, and the tail weight that the cache allows. Out: `ActiveTerms` and the order at any
step, and what is in force anywhere, so that maps are made and temperatures are looked for before the first.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple, final

from kdpipe.pipeline.losses.terms import HIDDEN_NAMES, LOGIT_NAMES, ActiveTerms, LossOptions, TermName
from kdpipe.pipeline.training.schedules import StepPlan, fallen
from kdpipe.schemas.choices import OrderName
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.train_settings import LossSettings, LossWeights, Phase, TrainSettings

# DESIGN 4, science.md 6: alpha leaves 1 over this share of the steps.
ALPHA_WARMUP: Final = 0.02


class ActiveOrder(NamedTuple):
    """An order, and the first step from which it has been in force without a break."""

    order: OrderName
    since: int


@final
class Curriculum:
    """Answers for any step; nothing in it changes."""

    def __init__(self, settings: TrainSettings, plan: StepPlan, tail_weight: float) -> None:
        self._losses, self._plan = settings.losses, plan
        self._order = settings.run.order
        self._phases = settings.run.phases or (Phase(until=1.0),)
        self._ends = [round(phase.until * plan.n_steps) for phase in self._phases]
        losses = settings.losses
        said = losses.tail_weight
        self._options = LossOptions(
            tail_weight=tail_weight if said is None else said,
            skew=LossOptions().skew if losses.skew is None else losses.skew,
            beta=LossOptions().beta if losses.beta is None else losses.beta,
            clamp_logits=settings.guard.clamp_logits,
            clamp_loss=settings.guard.clamp_loss,
        )
        _check_labels_only(losses, self._phases)
        for name, value, term in (("skew", losses.skew, "skew_kl"), ("beta", losses.beta, "jsd")):
            if value is not None and term not in self.terms:
                raise ConfigError(
                    f"losses.{name} is a number of {term}, which has no weight at any step",
                    hint=f"leave it out, or give --set losses.logit={term}",
                )
        for phase in self._lived():
            if not any(self._weights(phase, alpha) for alpha in self._alphas(phase)):
                where = f" in the phase until {phase.until:g}" if settings.run.phases else ""
                raise ConfigError(
                    f"no term has a weight{where}: nothing would be learnt", hint="give one a weight in losses.weights"
                )

    def phase_at(self, step: int) -> int:
        """The number of the phase that a step belongs to; what comes after the last step belongs to the last phase."""
        return next((n for n, end in enumerate(self._ends) if step < end), len(self._ends) - 1)

    def at(self, step: int) -> ActiveTerms:
        """The weights without their zeros, and the temperature, of the step after `step` that were done."""
        phase = self._phases[self.phase_at(step)]
        weights = self._weights(phase, self._alpha(phase, step))
        return ActiveTerms(weights=weights, temperature=self._temperature(phase), options=self._options)

    def order_at(self, step: int) -> ActiveOrder:
        """The order at a step, and since when; neighboring phases of one order are one stretch of its line."""
        number = self.phase_at(step)
        order = self._order_of(number)
        while number and self._order_of(number - 1) == order:
            number -= 1
        return ActiveOrder(order, self._ends[number - 1] if number else 0)

    @property
    def terms(self) -> frozenset[TermName]:
        """Every term that has a weight at some step."""
        return frozenset(
            name for phase in self._lived() for alpha in self._alphas(phase) for name in self._weights(phase, alpha)
        )

    @property
    def temperatures(self) -> frozenset[float]:
        """Every temperature that is in force at some step."""
        return frozenset(self._temperature(phase) for phase in self._lived())

    @property
    def is_constant(self) -> bool:
        """Whether the loss means the same at every step, so that its values can be compared."""
        return len({self._meaning(phase, alpha) for phase in self._lived() for alpha in self._alphas(phase)}) == 1

    @property
    def orders(self) -> frozenset[OrderName]:
        """Every order that is in force at some step."""
        return frozenset(phase.order or self._order for phase in self._lived())

    def lines(self, called: Callable[[TermName, float], str]) -> list[str]:
        """What is minimized when, for a person to read; `called` is the name of a term at a temperature."""
        lived = self._lived()
        ends = [end for end, start in zip(self._ends, [0, *self._ends[:-1]], strict=True) if start < end]
        told = [self._told(phase, called) for phase in lived]
        if len(told) > 1:
            told = [f"until step {end:,}: {text}" for end, text in zip(ends, told, strict=True)]
        return [f"{'' if number else 'minimizes':<12}{text}" for number, text in enumerate(told)]

    def _told(self, phase: Phase, called: Callable[[TermName, float], str]) -> str:
        losses, temperature = self._losses, self._temperature(phase)
        moves = phase.alpha is None and losses.alpha_schedule == "wsd"
        weights = self._weights(phase, losses.alpha if phase.alpha is None else phase.alpha)
        text = " + ".join(f"{weight:.4g} x {called(name, temperature)}" for name, weight in weights.items())
        if temperature != 1 and set(weights) & set(LOGIT_NAMES) - {"ce"}:
            text += f", at temperature {temperature:g}"
        order = phase.order or self._order
        text += "" if order == "shuffled" else f", by {order}"
        return text + (f", alpha from 1 to {losses.alpha:g}, in the end to {losses.alpha_end:g}" if moves else "")

    def _lived(self) -> list[Phase]:
        """Phases that have a step: in a short run some have none."""
        starts = [0, *self._ends[:-1]]
        return [phase for phase, start, end in zip(self._phases, starts, self._ends, strict=True) if start < end]

    def _order_of(self, number: int) -> OrderName:
        return self._phases[number].order or self._order

    def _temperature(self, phase: Phase) -> float:
        return self._losses.temperature if phase.temperature is None else phase.temperature

    def _meaning(self, phase: Phase, alpha: float) -> tuple[float, frozenset[tuple[TermName, float]]]:
        return self._temperature(phase), frozenset(self._weights(phase, alpha).items())

    def _alpha(self, phase: Phase, step: int) -> float:
        """The weight of CE: a phase's own as it stands, else by the schedule."""
        losses = self._losses
        if phase.alpha is not None or losses.alpha_schedule == "constant":
            return losses.alpha if phase.alpha is None else phase.alpha
        n_up = max(1, round(ALPHA_WARMUP * self._plan.n_steps))
        if step < n_up:
            return 1 + (losses.alpha - 1) * step / n_up
        return losses.alpha + (losses.alpha_end - losses.alpha) * fallen(self._plan, step)

    def _alphas(self, phase: Phase) -> Iterable[float]:
        """Values between which alpha moves; what weighs nothing at all of them weighs nothing between them."""
        losses = self._losses
        if phase.alpha is not None or losses.alpha_schedule == "constant":
            return [self._alpha(phase, 0)]
        return [1.0, losses.alpha, losses.alpha_end]

    def _weights(self, phase: Phase, alpha: float) -> Mapping[TermName, float]:
        """Each layer over the one before: mode and alpha, the run's weights, a phase's alpha, the phase's weights."""
        losses = self._losses
        by_mode = _by_mode(losses, alpha)
        layers = [by_mode, _said(losses.weights), by_mode if phase.alpha is not None else {}, _said(phase.weights)]
        weights: dict[TermName, float] = {}
        for layer in layers:
            weights |= layer
        return {name: weight for name, weight in weights.items() if weight}


def _by_mode(losses: LossSettings, alpha: float) -> dict[TermName, float]:
    if losses.mode == "output":
        return {"ce": 1.0}
    return {losses.logit: 1.0} if losses.mode == "logit" else {"ce": alpha, losses.logit: 1 - alpha}


def _said(weights: LossWeights) -> dict[TermName, float]:
    named = {name: getattr(weights, name) for name in (*LOGIT_NAMES, *HIDDEN_NAMES)}
    return {name: weight for name, weight in named.items() if weight is not None}


def _check_labels_only(losses: LossSettings, phases: Iterable[Phase]) -> None:
    """Refuse what mode and phases contradict each other about."""
    if losses.mode != "hybrid" and any(phase.alpha is not None for phase in phases):
        raise ConfigError(
            f"a phase gives alpha, which belongs to hybrid modes, and this one is {losses.mode}",
            hint="leave it out, or give --mode hybrid",
        )
    for weights in (losses.weights, *(phase.weights for phase in phases)):
        named = [name for name, weight in _said(weights).items() if weight and name in LOGIT_NAMES and name != "ce"]
        if losses.mode == "output" and named:
            raise ConfigError(
                f"mode output learns from labels alone, and {named[0]} has a weight: it needs targets",
                hint="leave the weight out, or give --mode logit or hybrid",
            )
