"""The guard: judges every step before it counts.

In: the findings, gradient norm and loss scale of a step. Out: accept, skip, roll back or stop, and why.
An overflow of a scaled loss (only the gradient is not finite, and the scale is above 1) is a skip after which the
scaler halves its scale, and is not counted as a fault: a start at 2^16 may take several. At a scale of 1 it is.
Norms are compared in two ways: a multiple of the median needs few norms and works across phases and rollbacks;
deviations from the mean are finer, need a full window, and start over there.
"""

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, final

from kdpipe.pipeline.losses.terms import ActiveTerms
from kdpipe.schemas.checkpoint import GuardState
from kdpipe.schemas.errors import ConfigError, KdpipeError
from kdpipe.schemas.train_settings import GuardSettings, OptimizerSettings

# Minimum deviation as a share of the mean: norms that hardly differ would reject the next normal one.
LEAST_DEVIATION: Final = 0.25
LEAST_SCALE: Final = 1.0
# Accepted norms that a median needs (docs/experiments.md, the spread of healthy norms).
LEAST_NORMS: Final = 8
# Extra room for gradients of a new phase.
CHANGE: Final = 10.0
SHOWN: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardValues:
    """Resolved guard settings; `lr_factor` scales default learning rates only."""

    sigma: float = 6.0
    window: int = 128
    median_factor: float = 200.0
    skip_gradient_norm: float | None = None
    patience: int = 5
    rollbacks: int = 3
    rate_factor: float = 0.5
    clip: float = 1.0
    lr_factor: float = 1.0
    snapshot_every: int | None = None
    ce_only_steps: int = 0


PRESETS: Final[dict[str, GuardValues]] = {
    "standard": GuardValues(),
    "fp16-safe": GuardValues(clip=0.5, lr_factor=0.5, patience=10, snapshot_every=100),
    "ultra-stable": GuardValues(clip=0.5, lr_factor=0.25, skip_gradient_norm=2.0, patience=3, snapshot_every=50),
}


def resolve(settings: GuardSettings, optimizer: OptimizerSettings) -> GuardValues:
    """Fill in what the settings leave open from their preset."""
    preset = PRESETS[settings.preset]
    rollbacks = preset.rollbacks if settings.rollbacks is None else settings.rollbacks
    if settings.ce_only_steps and not rollbacks:
        raise ConfigError("guard.ce_only_steps follows a rollback, but guard.rollbacks is 0", hint="omit one of them")
    return replace(
        preset,
        sigma=settings.sigma or preset.sigma,
        window=settings.window or preset.window,
        median_factor=settings.median_factor or preset.median_factor,
        skip_gradient_norm=settings.skip_gradient_norm or preset.skip_gradient_norm,
        patience=settings.patience or preset.patience,
        rollbacks=rollbacks,
        rate_factor=settings.rate_factor or preset.rate_factor,
        clip=optimizer.clip or preset.clip,
        snapshot_every=settings.snapshot_every or preset.snapshot_every,
        ce_only_steps=settings.ce_only_steps,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class NotFiniteFinding:
    """A value that is not finite: where (logits, targets, a term, gradient, parameters), what, in which sequences."""

    where: str
    what: str = ""
    sequences: tuple[int, ...] = ()

    def __str__(self) -> str:
        what = f" ({self.what})" if self.what else ""
        shown = ", ".join(str(number) for number in self.sequences[:SHOWN])
        more = f" and {len(self.sequences) - SHOWN} more" if len(self.sequences) > SHOWN else ""
        return f"{self.where}{what} not finite" + (f", sequences {shown}{more}" if shown else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardVerdict:
    """The verdict on a step, and why; `overflow` is a skip that the scaler handles."""

    kind: Literal["accept", "skip", "overflow", "rollback", "stop"]
    why: str = ""


ACCEPT: Final = GuardVerdict(kind="accept")


@final
class Guard:
    """Counts steps, keeps the norms of accepted ones, and judges."""

    def __init__(self, values: GuardValues, state: GuardState | None = None) -> None:
        self.values = values
        self._state = state or GuardState()
        self._norms = deque(self._state.norms, maxlen=values.window)
        self._wheres: tuple[str, ...] = ()

    @property
    def state(self) -> GuardState:
        """The state for a checkpoint."""
        return self._state.model_copy(update={"norms": tuple(self._norms)})

    @property
    def success_rate(self) -> float:
        """Accepted share of all steps tried; 1 before the first."""
        tried = self._state.accepted + self._state.undone + self._state.skipped
        return self._state.accepted / tried if tried else 1.0

    def enter(self, phase: int) -> None:
        """Note the phase of the next step; norms of another phase bound its norms only loosely."""
        if phase != self._state.phase:
            self._count(phase=phase, fresh=0)

    def roll_back(self, then: GuardState) -> None:
        """Uncount the steps accepted since `then`; skips and rollbacks stay counted."""
        state = self._state
        undone = state.undone + max(0, state.accepted - then.accepted)
        self._count(accepted=then.accepted, undone=undone, phase=then.phase)

    def active_terms(self, terms: ActiveTerms) -> ActiveTerms:
        """The terms of a step: cross-entropy only, for `ce_only_steps` steps after a rollback."""
        return replace(terms, weights={"ce": 1.0}) if self._state.ce_only_left else terms

    def judge(
        self, findings: Sequence[NotFiniteFinding], gradient_norm: float, scale: float | None = None
    ) -> GuardVerdict:
        """Judge a step; `scale`: that of the loss, if it is scaled."""
        state = self._state
        if not findings and not math.isfinite(gradient_norm):
            findings = (NotFiniteFinding(where="gradient"),)
        why = "; ".join(str(finding) for finding in findings) or self._too_large(gradient_norm)
        if not why:
            return self._accept(gradient_norm)
        self._count(skipped=state.skipped + 1)
        self._wheres = tuple(finding.where for finding in findings)
        if scale is not None and scale > LEAST_SCALE and set(self._wheres) == {"gradient"}:
            self._count(overflowed=state.overflowed + 1)
            return GuardVerdict(kind="overflow", why=f"the gradient overflowed at a loss scale of {scale:g}")
        self._count(in_a_row=state.in_a_row + 1)
        # The optimizer step has already been made.
        if self._state.in_a_row < self.values.patience and "parameters" not in self._wheres:
            return GuardVerdict(kind="skip", why=why)
        return self._roll_back(why)

    def failure(self, step: int, verdict: GuardVerdict) -> KdpipeError:
        """The error to raise after the verdict `stop`."""
        state = self._state
        return KdpipeError(
            f"training stopped at step {step:,}: {state.in_a_row} bad steps in a row after {state.rollbacks} "
            f"rollbacks, {state.skipped:,} steps skipped in total; the last: {verdict.why}",
            hint=_advice(self._wheres),
        )

    def _accept(self, gradient_norm: float) -> GuardVerdict:
        state = self._state
        fresh = state.fresh
        # A step whose positions are all masked has no norm to compare with.
        if gradient_norm:
            self._norms.append(gradient_norm)
            fresh = min(fresh + 1, self.values.window)
        left = max(0, state.ce_only_left - 1)
        if state.ce_only_left and not left:
            fresh = 0
        self._count(accepted=state.accepted + 1, in_a_row=0, ce_only_left=left, fresh=fresh)
        return ACCEPT

    def _roll_back(self, why: str) -> GuardVerdict:
        state, values = self._state, self.values
        if state.rollbacks >= values.rollbacks:
            return GuardVerdict(kind="stop", why=why)
        self._count(
            fresh=0,
            in_a_row=0,
            rollbacks=state.rollbacks + 1,
            rate_factor=state.rate_factor * values.rate_factor,
            ce_only_left=values.ce_only_steps,
        )
        return GuardVerdict(kind="rollback", why=why)

    def _too_large(self, norm: float) -> str:
        """Why a norm is too large, or an empty string."""
        limit = self.values.skip_gradient_norm
        if limit is not None and norm > limit:
            return f"the gradient norm {norm:.4g} exceeds {limit:g} (guard.skip_gradient_norm)"
        return self._over_median(norm) or self._over_deviations(norm)

    def _over_median(self, norm: float) -> str:
        """Compare with the median; the first norms after a change are compared with the median before it, with room for
        a loss of another scale."""
        norms, fresh, factor = list(self._norms), self._state.fresh, self.values.median_factor
        if len(norms) < LEAST_NORMS:
            return ""
        if fresh >= LEAST_NORMS:
            # Also of the last few: norms that grow steadily exceed the median of a long window.
            usual = max(statistics.median(norms[-fresh:]), statistics.median(norms[-LEAST_NORMS:]))
        else:
            usual, factor = statistics.median(norms), factor * CHANGE
        if norm <= factor * usual:
            return ""
        return (
            f"the gradient norm {norm:.4g} exceeds {factor * usual:.4g}, {factor:g} times the median of recent "
            "accepted steps (guard.median_factor)"
        )

    def _over_deviations(self, norm: float) -> str:
        """Compare with mean and deviation of a full window without a change."""
        values = self.values
        if self._state.fresh < values.window:
            return ""
        mean = math.fsum(self._norms) / len(self._norms)
        variance = math.fsum((accepted - mean) ** 2 for accepted in self._norms) / len(self._norms)
        usual = mean + values.sigma * max(math.sqrt(variance), LEAST_DEVIATION * mean)
        if norm <= usual:
            return ""
        return (
            f"the gradient norm {norm:.4g} exceeds {usual:.4g}, {values.sigma:g} deviations above the mean of the last "
            f"{values.window} accepted steps (guard.sigma)"
        )

    def _count(self, **changed: int | float) -> None:
        self._state = self._state.model_copy(update=changed)


def clamp_warnings(settings: GuardSettings, vocabulary_size: int) -> list[str]:
    """Warnings about what clamps distort."""
    warnings = []
    if (c := settings.clamp_logits) is not None:
        warnings.append(
            f"guard.clamp_logits={c:g}: no probability of {vocabulary_size:,} tokens can exceed "
            f"{largest_probability(c, vocabulary_size):.3g}, and logits outside ±{c:g} get no gradient: the student "
            "cannot match the teacher"
        )
    if settings.clamp_loss is not None:
        warnings.append(
            f"guard.clamp_loss={settings.clamp_loss:g}: positions with a larger loss get no gradient, although the "
            "student predicts them worst; the logged loss is no longer a mean"
        )
    return warnings


def largest_probability(clamp: float, vocabulary_size: int) -> float:
    """e^c / (e^c + (V - 1) e^-c): one logit at the clamp, all others at its negative."""
    return 1 / (1 + (vocabulary_size - 1) * math.exp(-2 * clamp))


def _advice(wheres: Sequence[str]) -> str:
    """What to try, by the last findings."""
    if "targets" in wheres:
        return "find damaged targets with kdpipe cache verify --level deep; make or copy those parts again"
    if "logits" in wheres:
        advice = "try --precision bf16 or fp32, a lower --lr, or --guard ultra-stable"
    elif not wheres:
        advice = "try a lower --lr, or a larger guard.sigma, guard.median_factor or guard.skip_gradient_norm"
    else:
        advice = "try a lower --lr, --precision bf16 or fp32, or --guard ultra-stable"
    return f"{advice}; resume from an earlier step with --resume-from STEP"
