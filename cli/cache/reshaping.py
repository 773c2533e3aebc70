"""What the commands that make caches from caches share: how they are followed, and what they answer with.

In: parts as they are made, and a report. Out: a line every half minute on stderr, a page on stdout.
"""

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, final

from kdpipe.cli import console
from kdpipe.cli.quantities import duration, size
from kdpipe.schemas.errors import ConfigError

if TYPE_CHECKING:
    from kdpipe.schemas.reshape import Bounds, ReshapeReport

SECONDS_BETWEEN_LINES = 30.0


@final
class ReshapeProgress:
    """Tells of parts, now and then."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._shown_at = clock, clock()
        self._n_parts = self._n_done = 0

    def begin(self, n_parts: int, n_done: int) -> None:
        """What is ahead, and what was done before."""
        self._n_parts, self._n_done = n_parts, n_done
        if n_done:
            console.note(f"{n_done:,} of {n_parts:,} parts are there already")

    def part_done(self, number: int) -> None:
        """One more; told when the last time is long enough ago."""
        self._n_done += 1
        if self._clock() - self._shown_at >= SECONDS_BETWEEN_LINES:
            self._shown_at = self._clock()
            console.note(f"{self._n_done:,} of {self._n_parts:,} parts")


def bounds(option: str, text: str | None) -> "Bounds | None":
    """From A:B, either of which may be left out."""
    from kdpipe.schemas.reshape import Bounds

    if text is None:
        return None
    found = re.fullmatch(r"([0-9]{0,15}):([0-9]{0,15})", text.strip())
    if not found or found[0] == ":":
        raise ConfigError(f"{option} {text} is not of the form A:B", hint=f"write {option} 0:100 for the first hundred")
    first, end = (int(number) if number else None for number in found.groups())
    if end is not None and (first or 0) >= end:
        raise ConfigError(
            f"{option} {text} has nothing in it", hint="the second number is the first that is not wanted"
        )
    return Bounds(first=first, end=end)


def answer(report: "ReshapeReport", json: bool) -> None:
    """The report, for a program or a person."""
    if json:
        console.document(report.model_dump(mode="json"))
    else:
        console.answer(page(report))


def page(report: "ReshapeReport") -> str:
    """What was made, for a person."""
    parts = f"{report.parts.planned:,}: {report.adopted:,} taken over as they are, {report.rewritten:,} written anew"
    left = f", {report.left_out:,} of the sources left out" if report.left_out else ""
    facts = [
        ("cache_id", report.cache_id),
        ("parts", f"{parts}; {report.parts.made:,} made now"),
        ("documents", f"{report.documents:,}{left}"),
        ("positions", f"{report.positions:,}"),
        ("size", size(report.bytes)),
        ("time", duration(report.seconds)),
    ]
    return "\n".join([report.cache, *console.facts(facts)])
