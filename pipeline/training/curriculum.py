"""Loss weights, temperature and data order of each optimizer step.

In: `TrainSettings`, the `StepPlan`, and the default tail weight of the cache. Out: `ActiveTerms` and the order of any
step, and all terms and temperatures of the run, so that everything they need is checked before the first step.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple, assert_never, final

from kdpipe.pipeline.losses.terms import HIDDEN_NAMES, LOGIT_NAMES, ActiveTerms, LossOptions, TermName
from kdpipe.pipeline.training.schedules import StepPlan, decay_progress
from kdpipe.schemas.choices import OrderName
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.train_settings import LossSettings, LossWeights, Phase, TrainSettings

# Alpha starts at 1 and reaches its value over this share of the steps.
ALPHA_WARMUP: Final = 0.02


class ActiveOrder(NamedTuple):
    """A data order, and the first step of its current stretch."""

    order: OrderName
    since: int


@final
class Curriculum:
    """An immutable schedule of terms and orders."""

    def __init__(self, settings: TrainSettings, plan: StepPlan, tail_weight: float) -> None:
        self._losses, self._plan = settings.losses, plan
        self._order = settings.run.order
        self._phases = settings.run.phases or (Phase(until=1.0),)
        self._ends = [round(phase.until * plan.n_steps) for phase in self._phases]
        losses = settings.losses
        self.options = LossOptions(
            tail_weight=tail_weight if losses.tail_weight is None else losses.tail_weight,
            skew=LossOptions().skew if losses.skew is None else losses.skew,
            beta=LossOptions().beta if losses.beta is None else losses.beta,
            clamp_logits=settings.guard.clamp_logits,
            clamp_loss=settings.guard.clamp_loss,
        )
        _check_mode(losses, self._phases)
        for name, value, term in (("skew", losses.skew, "skew_kl"), ("beta", losses.beta, "jsd")):
            if value is not None and term not in self.terms:
                raise ConfigError(
                    f"losses.{name} is an option of {term}, which has no weight at any step",
                    hint=f"omit it, or give --set losses.logit={term}",
                )
        for phase in self._phases_with_steps():
            if not any(self._weights(phase, alpha) for alpha in self._alphas(phase)):
                where = f" in the phase until {phase.until:g}" if settings.run.phases else ""
                raise ConfigError(f"no loss term has a weight{where}", hint="set one in losses.weights")

    def phase_at(self, step: int) -> int:
        """The phase number of a step; steps after the last belong to the last phase."""
        return next((n for n, end in enumerate(self._ends) if step < end), len(self._ends) - 1)

    def at(self, step: int) -> ActiveTerms:
        """The nonzero weights and the temperature once `step` steps are done."""
        phase = self._phases[self.phase_at(step)]
        weights = self._weights(phase, self._alpha(phase, step))
        return ActiveTerms(weights=weights, temperature=self._temperature(phase), options=self.options)

    def order_at(self, step: int) -> ActiveOrder:
        """The order at a step; consecutive phases with the same order are one stretch."""
        number = self.phase_at(step)
        order = self._order_of(number)
        while number and self._order_of(number - 1) == order:
            number -= 1
        return ActiveOrder(order, self._ends[number - 1] if number else 0)

    @property
    def terms(self) -> frozenset[TermName]:
        """Every term that has a weight at some step."""
        return frozenset(
            name
            for phase in self._phases_with_steps()
            for alpha in self._alphas(phase)
            for name in self._weights(phase, alpha)
        )

    @property
    def temperatures(self) -> frozenset[float]:
        """Every temperature used at some step."""
        return frozenset(self._temperature(phase) for phase in self._phases_with_steps())

    @property
    def is_constant(self) -> bool:
        """Whether weights and temperature never change, so that losses of different steps compare."""
        return (
            len({self._meaning(phase, alpha) for phase in self._phases_with_steps() for alpha in self._alphas(phase)})
            == 1
        )

    @property
    def orders(self) -> frozenset[OrderName]:
        """Every data order used at some step."""
        return frozenset(phase.order or self._order for phase in self._phases_with_steps())

    def lines(self, term_name: Callable[[TermName, float], str]) -> list[str]:
        """The loss of each phase, as lines to print; `term_name` labels terms by temperature."""
        phases = self._phases_with_steps()
        ends = [end for end, start in zip(self._ends, [0, *self._ends[:-1]], strict=True) if start < end]
        texts = [self._formula(phase, term_name) for phase in phases]
        if len(texts) > 1:
            texts = [f"until step {end:,}: {text}" for end, text in zip(ends, texts, strict=True)]
        return [f"{'' if number else 'loss':<12}{text}" for number, text in enumerate(texts)]

    def _formula(self, phase: Phase, term_name: Callable[[TermName, float], str]) -> str:
        losses, temperature = self._losses, self._temperature(phase)
        moves = phase.alpha is None and losses.alpha_schedule == "wsd"
        weights = self._weights(phase, losses.alpha if phase.alpha is None else phase.alpha)
        text = " + ".join(f"{weight:.4g} x {term_name(name, temperature)}" for name, weight in weights.items())
        if temperature != 1 and set(weights) & set(LOGIT_NAMES) - {"ce"}:
            text += f", at temperature {temperature:g}"
        order = phase.order or self._order
        text += "" if order == "shuffled" else f", data ordered by {order}"
        return text + (f", alpha from 1 to {losses.alpha:g}, then to {losses.alpha_end:g}" if moves else "")

    def _phases_with_steps(self) -> list[Phase]:
        """In a short run some phases have no step."""
        starts = [0, *self._ends[:-1]]
        return [phase for phase, start, end in zip(self._phases, starts, self._ends, strict=True) if start < end]

    def _order_of(self, number: int) -> OrderName:
        return self._phases[number].order or self._order

    def _temperature(self, phase: Phase) -> float:
        return self._losses.temperature if phase.temperature is None else phase.temperature

    def _meaning(self, phase: Phase, alpha: float) -> tuple[float, frozenset[tuple[TermName, float]]]:
        return self._temperature(phase), frozenset(self._weights(phase, alpha).items())

    def _alpha(self, phase: Phase, step: int) -> float:
        """The weight of CE: the phase's own, else by the schedule."""
        losses = self._losses
        if phase.alpha is not None or losses.alpha_schedule == "constant":
            return losses.alpha if phase.alpha is None else phase.alpha
        n_up = max(1, round(ALPHA_WARMUP * self._plan.n_steps))
        if step < n_up:
            return 1 + (losses.alpha - 1) * step / n_up
        return losses.alpha + (losses.alpha_end - losses.alpha) * decay_progress(self._plan, step)

    def _alphas(self, phase: Phase) -> Iterable[float]:
        """The extremes of alpha: a term without weight at all of them has none in between."""
        losses = self._losses
        if phase.alpha is not None or losses.alpha_schedule == "constant":
            return [self._alpha(phase, 0)]
        return [1.0, losses.alpha, losses.alpha_end]

    def _weights(self, phase: Phase, alpha: float) -> Mapping[TermName, float]:
        """Later layers override: mode and alpha, the run's weights, the phase's alpha, the phase's weights."""
        losses = self._losses
        by_mode = _by_mode(losses, alpha)
        layers = [
            by_mode,
            _given_weights(losses.weights),
            by_mode if phase.alpha is not None else {},
            _given_weights(phase.weights),
        ]
        weights: dict[TermName, float] = {}
        for layer in layers:
            weights |= layer
        return {name: weight for name, weight in weights.items() if weight}


def _by_mode(losses: LossSettings, alpha: float) -> dict[TermName, float]:
    match losses.mode:
        case "output":
            return {"ce": 1.0}
        case "logit":
            return {losses.logit: 1.0}
        case "hybrid":
            return {"ce": alpha, losses.logit: 1 - alpha}
        case _:
            assert_never(losses.mode)


def _given_weights(weights: LossWeights) -> dict[TermName, float]:
    values = {name: getattr(weights, name) for name in (*LOGIT_NAMES, *HIDDEN_NAMES)}
    return {name: weight for name, weight in values.items() if weight is not None}


def _check_mode(losses: LossSettings, phases: Iterable[Phase]) -> None:
    """Refuse an alpha without a hybrid mode, and teacher terms in mode output."""
    if losses.mode != "hybrid" and any(phase.alpha is not None for phase in phases):
        raise ConfigError(
            f"a phase sets alpha, which needs mode hybrid, not {losses.mode}",
            hint="omit it, or give --mode hybrid",
        )
    for weights in (losses.weights, *(phase.weights for phase in phases)):
        named = [
            name for name, weight in _given_weights(weights).items() if weight and name in LOGIT_NAMES and name != "ce"
        ]
        if losses.mode == "output" and named:
            raise ConfigError(
                f"mode output trains on labels only, but {named[0]}, which needs targets, has a weight",
                hint="omit the weight, or give --mode logit or hybrid",
            )
