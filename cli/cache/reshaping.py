"""Shared by merge, subset and requantize: progress, A:B ranges, and the report."""

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, final

from kdpipe.cli import console
from kdpipe.cli.progress import SECONDS_BETWEEN_LINES, Throttle
from kdpipe.cli.quantities import duration, size
from kdpipe.schemas.errors import ConfigError

if TYPE_CHECKING:
    from kdpipe.schemas.reshape import Bounds, ReshapeReport


@final
class ReshapeProgress:
    """Shows parts done, at most every half minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._throttle = Throttle(SECONDS_BETWEEN_LINES, clock)
        self._n_parts = self._n_done = 0

    def begin(self, n_parts: int, n_done: int) -> None:
        self._n_parts, self._n_done = n_parts, n_done
        if n_done:
            console.note(f"{n_done:,} of {n_parts:,} parts are already there")

    def part_done(self, number: int) -> None:
        self._n_done += 1
        if self._throttle.is_open():
            console.note(f"{self._n_done:,} of {self._n_parts:,} parts")


def bounds(option: str, text: str | None) -> "Bounds | None":
    """A range A:B with optional ends."""
    from kdpipe.schemas.reshape import Bounds

    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{0,15}):([0-9]{0,15})", text.strip())
    if not match or match[0] == ":":
        raise ConfigError(f"{option} {text} is not of the form A:B", hint=f"for the first hundred, use {option} 0:100")
    first, end = (int(number) if number else None for number in match.groups())
    if end is not None and (first or 0) >= end:
        raise ConfigError(f"{option} {text} is empty", hint="B is exclusive and must be larger than A")
    return Bounds(first=first, end=end)


def answer(report: "ReshapeReport", json: bool) -> None:
    if json:
        console.document(report.model_dump(mode="json"))
    else:
        console.answer(page(report))


def page(report: "ReshapeReport") -> str:
    """The report as text."""
    parts = f"{report.parts.planned:,}: {report.adopted:,} reused unchanged, {report.rewritten:,} rewritten"
    left = f", {report.left_out:,} of the sources dropped" if report.left_out else ""
    facts = [
        ("cache_id", report.cache_id),
        ("parts", f"{parts}; {report.parts.made:,} from this run"),
        ("documents", f"{report.documents:,}{left}"),
        ("positions", f"{report.positions:,}"),
        ("size", size(report.bytes)),
        ("time", duration(report.seconds)),
    ]
    return "\n".join([report.cache, *console.facts(facts)])
