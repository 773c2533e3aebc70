"""The one module that prints: reports on stdout, progress, notes and errors on stderr; in color on a terminal."""

import io
import json
import logging
import os
import re
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from kdpipe.schemas.choices import TextStyle

if TYPE_CHECKING:
    from kdpipe.schemas.records import Record

Fact = tuple[str, str]
# Libraries that warn about how kdpipe calls them; shown with --debug.
QUIET_LIBRARIES = ("lm_eval",)
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
# Graphic renditions (ECMA-48, 8.3.117): bold, green, yellow, bold red.
RENDITIONS: dict[TextStyle, str] = {"heading": "1", "best": "32", "warning": "33", "error": "1;31"}
STYLED = re.compile(rf"\x1b\[(?:{'|'.join(RENDITIONS.values())})m[^\x1b\n]*\x1b\[0m")


def set_up(*, debug: bool) -> None:
    """Make the streams accept every character, and send log lines to stderr."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    level = logging.DEBUG if debug else logging.WARNING
    logging.basicConfig(level=level, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    for name in QUIET_LIBRARIES:
        logging.getLogger(name).setLevel(logging.DEBUG if debug else logging.ERROR)


def answer(text: str) -> None:
    """Print to stdout."""
    print(_harmless(text, sys.stdout))


def stream(text: str) -> None:
    """Print a piece of a line to stdout at once."""
    print(_harmless(text, sys.stdout), end="", flush=True)


def ask(prompt: str) -> str | None:
    """A line of stdin, None at its end; the prompt is shown on a terminal only."""
    if sys.stdin.isatty():
        try:
            return input(prompt)
        except EOFError:
            return None
    line = sys.stdin.readline()
    return line.rstrip("\n") if line else None


def document(value: object) -> None:
    """Print the JSON document of --json, in ASCII, which every terminal and pipe can encode."""
    print(json.dumps(value, indent=2, allow_nan=False))


def reply(report: "Record", page: str, *, as_json: bool) -> None:
    """Print a report: as one JSON document, or as its page of text."""
    if as_json:
        document(report.model_dump(mode="json"))
    else:
        answer(page)


def note(text: str) -> None:
    """Print to stderr."""
    print(_harmless(text, sys.stderr), file=sys.stderr, flush=True)


def next_commands(commands: Sequence[Sequence[str]], *, quiet: bool) -> None:
    """Print commands to copy to stderr, one per line."""
    if not quiet:
        note("\n".join(["next:", *(f"  kdpipe {shlex.join(words)}" for words in commands)]))


def parts(n: int) -> str:
    return "1 part" if n == 1 else f"{n:,} parts"


def warning_text(text: str) -> str:
    return f"{styled('warning:', 'warning', sys.stderr)} {text}"


def styled(text: str, style: TextStyle, stream: TextIO) -> str:
    """Text for a stream, in color if the stream shows colors."""
    return f"\x1b[{RENDITIONS[style]}m{text}\x1b[0m" if style != "plain" and is_colored(stream) else text


def is_colored(stream: TextIO) -> bool:
    """Whether a stream is a terminal with colors and NO_COLOR (no-color.org) is not set."""
    stream = getattr(stream, "rich_proxied_file", stream)  # while a bar is shown
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def draw(text: str) -> None:
    """Write over the current line of a notebook cell's output."""
    print(f"\r{_harmless(text, sys.stdout)}", end="", flush=True)


def failure(message: str, hint: str | None, label: str = "error") -> None:
    """Print an error and what to do about it to stderr."""
    style: TextStyle = "error" if label == "error" else "warning"
    note(f"{styled(f'{label}:', style, sys.stderr)} {message}")
    if hint is not None:
        note(f"{styled('hint:', 'heading', sys.stderr)} {hint}")


def facts(pairs: Sequence[Fact]) -> list[str]:
    """One line per name and value; line breaks in a value become spaces."""
    width = max([12, *(len(name) + 1 for name, _ in pairs)])
    return [f"  {name:<{width}}{' '.join(value.split())}" for name, value in pairs]


def bar(share: float, width: int = 30) -> str:
    """A bar for a share from 0 to 1, made of a character that stdout can encode."""
    encoding = sys.stdout.encoding or "ascii"
    block = "\u2588" if "\u2588".encode(encoding, "ignore") else "#"
    return block * round(min(max(share, 0.0), 1.0) * width)


def _harmless(text: str, stream: TextIO) -> str:
    """Escape control characters: names in a cache or a path may contain terminal escape sequences."""
    place, parts = 0, []
    for match in STYLED.finditer(text) if is_colored(stream) else ():
        parts += [_escaped(text[place : match.start()]), match[0]]
        place = match.end()
    return "".join([*parts, _escaped(text[place:])])


def _escaped(text: str) -> str:
    return CONTROLS.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
