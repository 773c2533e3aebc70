"""The one place that prints: answers on stdout, everything said to a person on stderr.

In: text, JSON-able values and errors from the commands. Out: lines on the two streams; a program that reads stdout
never meets a progress line. Before it: any module of `cli/`. After it: the terminal.
"""

import io
import json
import logging
import sys


def set_up(*, debug: bool) -> None:
    """Make the streams accept every character, and send log lines to stderr."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    level = logging.DEBUG if debug else logging.WARNING
    logging.basicConfig(level=level, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")


def answer(text: str) -> None:
    """Print what was asked for."""
    print(text)


def document(value: object) -> None:
    """Print the one JSON document of a command that was given --json."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def note(text: str) -> None:
    """Tell the person how it is going."""
    print(text, file=sys.stderr, flush=True)


def failure(message: str, hint: str | None) -> None:
    """Say what went wrong, and what to do about it."""
    print(f"error: {message}", file=sys.stderr)
    if hint is not None:
        print(f"hint: {hint}", file=sys.stderr)
