"""The guard: judges every step before it counts, and answers what follows when steps go wrong.

In: what was found in a step, its gradient norm, the scale of the loss. Out: accept, skip, roll back, or stop and why;
its state for the checkpoint.

An overflow of a scaled loss (only the gradient is not finite, and the scale is above 1) is a skip that the scaler
answers by halving its scale. It is no fault: a start at 2^16 may take several. At a scale of 1 it is one, so that a
gradient that is never finite costs sixteen steps and is then met like everything else.

Norms are compared in two ways. A multiple of the median needs few norms and holds over phases and rollbacks; deviations
from the mean are finer, need a full window, and start over there.
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

# A window of norms that hardly differ would reject the next normal one: a deviation counts as this share of the mean.
LEAST_DEVIATION: Final = 0.25
LEAST_SCALE: Final = 1.0
# Accepted norms that a median needs (docs/experiments.md: how far healthy norms are from it).
LEAST_NORMS: Final = 8
# How much larger than before gradients of another phase may be.
CHANGE: Final = 10.0
SHOWN: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardValues:
    """What the guard goes by; `lr_factor` is of a rate that nobody said, `snapshot_every` None is with each save."""

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


def resolve(guarding: GuardSettings, optimizer: OptimizerSettings) -> GuardValues:
    """What the preset says, under what a person says."""
    preset = PRESETS[guarding.preset]
    rollbacks = preset.rollbacks if guarding.rollbacks is None else guarding.rollbacks
    if guarding.ce_only_steps and not rollbacks:
        raise ConfigError(
            "guard.ce_only_steps is what follows a rollback, and guard.rollbacks is 0", hint="leave one of them out"
        )
    return replace(
        preset,
        sigma=guarding.sigma or preset.sigma,
        window=guarding.window or preset.window,
        median_factor=guarding.median_factor or preset.median_factor,
        skip_gradient_norm=guarding.skip_gradient_norm or preset.skip_gradient_norm,
        patience=guarding.patience or preset.patience,
        rollbacks=rollbacks,
        rate_factor=guarding.rate_factor or preset.rate_factor,
        clip=optimizer.clip or preset.clip,
        snapshot_every=guarding.snapshot_every or preset.snapshot_every,
        ce_only_steps=guarding.ce_only_steps,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class NotFiniteFinding:
    """Something that is not finite: where (logits, targets, a term, gradient, parameters), what, in which sequences."""

    where: str
    what: str = ""
    sequences: tuple[int, ...] = ()

    def __str__(self) -> str:
        named = f" ({self.what})" if self.what else ""
        shown = ", ".join(str(number) for number in self.sequences[:SHOWN])
        more = f" and {len(self.sequences) - SHOWN} more" if len(self.sequences) > SHOWN else ""
        return f"{self.where}{named} not finite" + (f", sequences {shown}{more}" if shown else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardVerdict:
    """What is to be done about a step, and why: `overflow` is a skip that is the scaler's business alone."""

    kind: Literal["accept", "skip", "overflow", "rollback", "stop"]
    why: str = ""


ACCEPT: Final = GuardVerdict(kind="accept")


@final
class Guard:
    """Counts, remembers the norms of accepted steps, and judges."""

    def __init__(self, values: GuardValues, state: GuardState | None = None) -> None:
        self.values = values
        self._state = state or GuardState()
        self._norms = deque(self._state.norms, maxlen=values.window)
        self._wheres: tuple[str, ...] = ()

    @property
    def state(self) -> GuardState:
        """All that a checkpoint must hold."""
        return self._state.model_copy(update={"norms": tuple(self._norms)})

    @property
    def success_rate(self) -> float:
        """Of all steps tried, the share that counts; 1 before the first."""
        tried = self._state.accepted + self._state.undone + self._state.skipped
        return self._state.accepted / tried if tried else 1.0

    def enter(self, phase: int) -> None:
        """A step of a phase begins; norms under other weights or another temperature only bound its own loosely."""
        if phase != self._state.phase:
            self._count(phase=phase, fresh=0)

    def go_back(self, then: GuardState) -> None:
        """Take back the steps that were accepted since; what was skipped and rolled back stays counted."""
        state = self._state
        undone = state.undone + max(0, state.accepted - then.accepted)
        self._count(accepted=then.accepted, undone=undone, phase=then.phase)

    def in_force(self, terms: ActiveTerms) -> ActiveTerms:
        """The terms of a step: for a while after a rollback cross-entropy alone, if that was asked for."""
        return replace(terms, weights={"ce": 1.0}) if self._state.ce_only_left else terms

    def judge(
        self, findings: Sequence[NotFiniteFinding], gradient_norm: float, scale: float | None = None
    ) -> GuardVerdict:
        """Say what follows from a step; `scale` is that of the loss, None where it is not scaled."""
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
        # A step that has been taken cannot be skipped any more.
        if self._state.in_a_row < self.values.patience and "parameters" not in self._wheres:
            return GuardVerdict(kind="skip", why=why)
        return self._roll_back(why)

    def failure(self, step: int, verdict: GuardVerdict) -> KdpipeError:
        """What to raise once the verdict is to stop, after a checkpoint of the last good state."""
        state = self._state
        return KdpipeError(
            f"training stopped at step {step:,}: {state.in_a_row} in a row went wrong after {state.rollbacks} "
            f"rollbacks, {state.skipped:,} were skipped in all; the last: {verdict.why}",
            hint=_advice(self._wheres),
        )

    def _accept(self, gradient_norm: float) -> GuardVerdict:
        state = self._state
        fresh = state.fresh
        # A step whose every position is masked out says nothing of what is usual.
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
        """Why a norm is too large, or nothing."""
        limit = self.values.skip_gradient_norm
        if limit is not None and norm > limit:
            return f"the gradient norm {norm:.4g} is over {limit:g} (guard.skip_gradient_norm)"
        return self._over_median(norm) or self._over_deviations(norm)

    def _over_median(self, norm: float) -> str:
        """Compare with the median; the first norms after a change are held to the median from before it, with room for
        a loss of another scale."""
        norms, fresh, factor = list(self._norms), self._state.fresh, self.values.median_factor
        if len(norms) < LEAST_NORMS:
            return ""
        if fresh >= LEAST_NORMS:
            # Of the last few too: norms that grow steadily stay ahead of the median of a long window.
            usual = max(statistics.median(norms[-fresh:]), statistics.median(norms[-LEAST_NORMS:]))
        else:
            usual, factor = statistics.median(norms), factor * CHANGE
        if norm <= factor * usual:
            return ""
        return (
            f"the gradient norm {norm:.4g} is over {factor * usual:.4g}, {factor:g} times the median of the last "
            "accepted (guard.median_factor)"
        )

    def _over_deviations(self, norm: float) -> str:
        """Compare with mean and deviation of a window in which nothing has changed."""
        values = self.values
        if self._state.fresh < values.window:
            return ""
        mean = math.fsum(self._norms) / len(self._norms)
        variance = math.fsum((one - mean) ** 2 for one in self._norms) / len(self._norms)
        usual = mean + values.sigma * max(math.sqrt(variance), LEAST_DEVIATION * mean)
        if norm <= usual:
            return ""
        return (
            f"the gradient norm {norm:.4g} is over {usual:.4g}, {values.sigma:g} deviations above the last "
            f"{values.window} accepted (guard.sigma)"
        )

    def _count(self, **changed: int | float) -> None:
        self._state = self._state.model_copy(update=changed)


def clamp_warnings(guarding: GuardSettings, vocabulary_size: int) -> list[str]:
    """What the clamps that were asked for distort, to be said before the first step."""
    told = []
    if (c := guarding.clamp_logits) is not None:
        told.append(
            f"guard.clamp_logits={c:g}: no probability of {vocabulary_size:,} tokens can exceed "
            f"{largest_probability(c, vocabulary_size):.3g}, and logits outside ±{c:g} learn nothing; a student "
            "trained so does not become the teacher"
        )
    if guarding.clamp_loss is not None:
        told.append(
            f"guard.clamp_loss={guarding.clamp_loss:g}: positions with a larger loss teach nothing, and these are the "
            "ones the student knows least; the loss that is shown is no mean any more"
        )
    return told


def largest_probability(clamp: float, vocabulary_size: int) -> float:
    """e^c / (e^c + (V - 1) e^-c): one logit at the clamp, all others at its negative."""
    return 1 / (1 + (vocabulary_size - 1) * math.exp(-2 * clamp))


def _advice(wheres: Sequence[str]) -> str:
    """What to try, by what was seen last."""
    if "targets" in wheres:
        return "kdpipe cache verify --level deep finds damaged targets; make or copy those parts again"
    if "logits" in wheres:
        told = "try --precision bf16 or fp32, a lower --lr, or --guard ultra-stable"
    elif not wheres:
        told = "try a lower --lr, or a larger guard.sigma, guard.median_factor or guard.skip_gradient_norm"
    else:
        told = "try a lower --lr, --precision bf16 or fp32, or --guard ultra-stable"
    return f"{told}, from a step that was good: --resume-from STEP"
