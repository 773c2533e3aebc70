"""`Watch`: whoever follows a long run, as a protocol, and one who does not.

In: what a story of the pipeline says while it goes on. Out: nothing; no story depends on who listens.
Before it: `pipeline/cache_teacher.py`, `pipeline/plan.py`. After it: `cli/progress.py`, on a terminal or in a log.
"""

from typing import Protocol


class Watch(Protocol):
    """Told in this order: `begin` once, then `progress` and `part_done` as they come; `say` and `warn` at any time.

    Calls are cheap and come from the main thread; `progress` may be called after every batch.
    """

    def say(self, text: str) -> None:
        """Tell the person something worth a line."""
        ...

    def warn(self, text: str) -> None:
        """Tell the person something to look into; the run goes on."""
        ...

    def begin(self, n_parts: int, n_done: int, positions_planned: int | None) -> None:
        """Work starts: parts of this run in all, those that were there before, positions that are still to be made."""
        ...

    def progress(
        self,
        positions_done: int,
        positions_per_second: float,
        waiting_share: float,
        bytes_written: int,
        seconds_left: float | None,
    ) -> None:
        """Where the run is; the share is of the time spent waiting on the teacher, 0 to 1."""
        ...

    def part_done(self, number: int, positions: int, n_bytes: int, seconds: float) -> None:
        """Part `number` (counted from 0) is committed."""
        ...


class SilentWatch:
    """Nobody listens."""

    def say(self, text: str) -> None:
        """Nothing."""

    def warn(self, text: str) -> None:
        """Nothing."""

    def begin(self, n_parts: int, n_done: int, positions_planned: int | None) -> None:
        """Nothing."""

    def progress(
        self,
        positions_done: int,
        positions_per_second: float,
        waiting_share: float,
        bytes_written: int,
        seconds_left: float | None,
    ) -> None:
        """Nothing."""

    def part_done(self, number: int, positions: int, n_bytes: int, seconds: float) -> None:
        """Nothing."""
