"""`Watch`, `TrainWatch`, `EvalWatch`: whoever follows a long run, as protocols, and those who do not.

In: what a story of the pipeline says while it goes on. Out: nothing; no story depends on who listens.
"""

from dataclasses import dataclass
from typing import Protocol


class Listener(Protocol):
    """Someone to whom a line can be said."""

    def say(self, text: str) -> None:
        """Tell the person something worth a line."""
        ...

    def warn(self, text: str) -> None:
        """Tell the person something to look into; the run goes on."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StepProgress:
    """Where a student is: steps done, its loss, the rate in force, what it costs, and the time that is left."""

    step: int
    loss: float | None
    loss_name: str
    rate: float
    positions_per_second: float
    waiting_share: float
    skipped: int
    seconds_left: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PartsProgress:
    """Where a cache is: positions done by this run, what it costs, and the time that is left.

    `waiting_share` is the share of the time spent waiting on the teacher, 0 to 1.
    """

    positions_done: int
    positions_per_second: float
    waiting_share: float
    bytes_written: int
    seconds_left: float | None


class TrainWatch(Listener, Protocol):
    """Follows a student: `begin` once, then `stepped` after every step."""

    def begin(self, n_steps: int, n_done: int) -> None:
        """Learning starts: steps of the whole run, and those that were done before."""
        ...

    def stepped(self, news: StepProgress) -> None:
        """One more step is done or was skipped."""
        ...


class EvalWatch(Listener, Protocol):
    """Follows an evaluation."""

    def measured(self, n_done: int, n_sequences: int) -> None:
        """So many sequences of those that are to be read have been measured."""
        ...


class Watch(Listener, Protocol):
    """Told in this order: `begin` once, then `progress` and `part_done` as they come; `say` and `warn` at any time.

    Calls are cheap and come from the main thread; `progress` may be called after every batch.
    """

    def begin(self, n_parts: int, n_done: int, positions_planned: int | None) -> None:
        """Work starts: parts of this run in all, those that were there before, positions that are still to be made."""
        ...

    def progress(self, news: PartsProgress) -> None:
        """Where the run is."""
        ...

    def part_done(self, number: int, positions: int, n_bytes: int, seconds: float) -> None:
        """Part `number` (counted from 0) is committed."""
        ...


class SilentListener:
    """Hears nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def warn(self, text: str) -> None:
        """Nothing."""


class SilentTrainWatch(SilentListener):
    """Nobody follows a student."""

    def begin(self, n_steps: int, n_done: int) -> None:
        """Nothing."""

    def stepped(self, news: StepProgress) -> None:
        """Nothing."""


class SilentEvalWatch(SilentListener):
    """Nobody follows an evaluation."""

    def measured(self, n_done: int, n_sequences: int) -> None:
        """Nothing."""


class SilentWatch(SilentListener):
    """Nobody follows a teacher."""

    def begin(self, n_parts: int, n_done: int, positions_planned: int | None) -> None:
        """Nothing."""

    def progress(self, news: PartsProgress) -> None:
        """Nothing."""

    def part_done(self, number: int, positions: int, n_bytes: int, seconds: float) -> None:
        """Nothing."""
