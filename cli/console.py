"""The one place that prints: answers on stdout, everything said to a person on stderr.

In: text, JSON-able values and errors from the commands. Out: lines on the two streams; a program that reads stdout
never meets a progress line.
"""

import io
import json
import logging
import re
import sys
from collections.abc import Sequence
from typing import Any, Protocol

Fact = tuple[str, str]
# Libraries that warn about how they are called, which is not up to the user; --debug shows it.
QUIET_LIBRARIES = ("lm_eval",)
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class Reported(Protocol):
    """A record that a command answers with."""

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """Its plain values."""
        ...


def set_up(*, debug: bool) -> None:
    """Make the streams accept every character, and send log lines to stderr; some libraries log errors only."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    level = logging.DEBUG if debug else logging.WARNING
    logging.basicConfig(level=level, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    for name in QUIET_LIBRARIES:
        logging.getLogger(name).setLevel(logging.DEBUG if debug else logging.ERROR)


def answer(text: str) -> None:
    """Print what was asked for."""
    print(_harmless(text))


def document(value: object) -> None:
    """Print the one JSON document of a command that was given --json, in ASCII: no terminal can spoil it."""
    print(json.dumps(value, indent=2, allow_nan=False))


def reply(report: Reported, page: str, *, as_json: bool) -> None:
    """Answer with a report: as one JSON document for a program, or by its page for a person."""
    if as_json:
        document(report.model_dump(mode="json"))
    else:
        answer(page)


def note(text: str) -> None:
    """Tell the person how it is going."""
    print(_harmless(text), file=sys.stderr, flush=True)


def parts(n: int) -> str:
    """So many parts of a cache."""
    return "1 part" if n == 1 else f"{n:,} parts"


class Notes:
    """Someone who passes on what is said, a line at once."""

    def say(self, text: str) -> None:
        """Something worth a line."""
        note(text)

    def warn(self, text: str) -> None:
        """Something to look into."""
        note(f"warning: {text}")


def failure(message: str, hint: str | None) -> None:
    """Say what went wrong, and what to do about it."""
    print(_harmless(f"error: {message}"), file=sys.stderr)
    if hint is not None:
        print(_harmless(f"hint: {hint}"), file=sys.stderr)


def facts(told: Sequence[Fact]) -> list[str]:
    """Names with their values below each other; a value is one line, whatever was in it."""
    width = max([12, *(len(name) + 1 for name, _ in told)])
    return [f"  {name:<{width}}{' '.join(value.split())}" for name, value in told]


def bar(share: float, width: int = 30) -> str:
    """A bar for a share of 0 to 1, of a character that this terminal can show."""
    encoding = sys.stdout.encoding or "ascii"
    block = "\u2588" if "\u2588".encode(encoding, "ignore") else "#"
    return block * round(min(max(share, 0.0), 1.0) * width)


def _harmless(text: str) -> str:
    """Spell control characters out: names in a cache or a path may hold sequences that steer a terminal."""
    return CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
