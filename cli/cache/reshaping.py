"""Shared by merge, subset and requantize: A:B ranges, and the report."""

import re
from typing import TYPE_CHECKING

from kdpipe.cli import console
from kdpipe.cli.quantities import duration, size
from kdpipe.schemas.errors import ConfigError

if TYPE_CHECKING:
    from kdpipe.schemas.reshape import Bounds, ReshapeReport


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
