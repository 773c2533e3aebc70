"""`kdpipe sample`: prompts continued by one or several models."""

import shutil
import textwrap
from collections.abc import Mapping
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdpipe.cli import console
from kdpipe.cli.common_options import Json, Quiet
from kdpipe.cli.compare import names
from kdpipe.cli.progress import shown_progress
from kdpipe.cli.sampling_options import SamplingOptions, with_sampling_options
from kdpipe.schemas.errors import UsageError

if TYPE_CHECKING:
    from kdpipe.schemas.sample_report import RunSamples, SampleReport

# Two texts are shown side by side where each has so many columns.
SIDE_BY_SIDE = 50
WIDEST = 120


@with_sampling_options(max_new_tokens=64, what="the text")
def sample(
    given: SamplingOptions,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", metavar="TEXT", help="Text to continue (repeatable).")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts", metavar="FILE", help='File of prompts: one per line, or {"prompt": ...} per line of a .jsonl.'
        ),
    ] = None,
    beside: Annotated[
        list[str] | None,
        typer.Option("--beside", metavar="MODEL", help="Another model to continue the same prompts (repeatable)."),
    ] = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Continue prompts with a model.

    Without prompts, three documents of the validation split of the run's cache are continued.
    """
    texts = (*(prompt or ()), *(() if prompts is None else _read_prompts(prompts)))
    settings = given.settings()
    from kdpipe.pipeline.sample import SampleRequest
    from kdpipe.pipeline.sample import sample as run

    first = given.request()
    others = [replace(first, name=name, revision=None) for name in beside or ()]
    with shown_progress(quiet=quiet) as progress:
        report = run(SampleRequest(models=(first, *others), settings=settings, prompts=texts), progress)
    console.reply(report, page(report), as_json=json)


def _read_prompts(path: Path) -> list[str]:
    """The prompts of a file; blank lines are skipped."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise UsageError(f"--prompts {path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise UsageError(f"--prompts {path} is not text in UTF-8") from None
    if not lines:
        raise UsageError(f"--prompts {path} is empty", hint="write one prompt per line")
    return lines if path.suffix != ".jsonl" else [_json_prompt(path, n, line) for n, line in enumerate(lines, 1)]


def _json_prompt(path: Path, number: int, line: str) -> str:
    import json

    try:
        prompt = json.loads(line)["prompt"]
    except (ValueError, KeyError, TypeError):
        prompt = None
    if not isinstance(prompt, str) or not prompt:
        raise UsageError(f"{path}:{number}: expected an object with the text of a prompt", hint='{"prompt": "..."}')
    return prompt


def page(report: "SampleReport") -> str:
    """Each prompt with its continuations."""
    labels = names([model.name for model in report.models])
    lines: list[str] = []
    for number, sampled in enumerate(report.samples, 1):
        source = "" if sampled.document is None else f", validation document {sampled.document:,}"
        texts = {label: part.text for label, part in zip(labels, sampled.continuations, strict=True)}
        lines += [f"{number:,} of {len(report.samples):,}{source}", *continuations(sampled.prompt, texts), ""]
    return "\n".join([*lines[:-1], *(f"note: {note}" for note in report.notes)])


def last_lines(samples: "RunSamples") -> list[str]:
    """The texts of a run's last evaluation: a line with the end of each prompt, and one with the start of its text."""
    width = min(shutil.get_terminal_size().columns, WIDEST) - 1
    room = width - 2 - len("prompt") - 2
    lines = [f"samples at step {samples.step:,}, from samples.jsonl"]
    for sample in samples.samples:
        prompt, text = (_one_line(part) for part in (sample.prompt, sample.text))
        prompt = prompt if len(prompt) <= room else f"...{prompt[3 - room :]}"
        text = text if len(text) <= room else f"{text[: room - 3]}..."
        lines += [f"  prompt  {prompt}", f"  text    {text}".rstrip()]
    return lines


def _one_line(text: str) -> str:
    """A text with spaces instead of line breaks, and escape sequences instead of control characters."""
    line = " ".join(text.split())
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in line)


def continuations(prompt: str, texts: Mapping[str, str]) -> list[str]:
    """A prompt and the texts that follow it by label: below each other, or two side by side on a wide terminal."""
    width = min(shutil.get_terminal_size().columns, WIDEST) - 1
    half = (width - 5) // 2
    if len(texts) == 2 and half >= SIDE_BY_SIDE:
        cells = [[label, *_wrapped(text, half)] for label, text in texts.items()]
        columns = [f"{left:<{half}} | {right}" for left, right in zip_longest(*cells, fillvalue="")]
        return [f"  {line}".rstrip() for line in (*_labeled("prompt", prompt, "prompt", width), *columns)]
    rows = [("prompt", prompt), *texts.items()]
    longest = max((label for label, _ in rows), key=len)
    return [f"  {line}".rstrip() for label, text in rows for line in _labeled(label, text, longest, width)]


def _labeled(label: str, text: str, longest: str, width: int) -> list[str]:
    """A text to the right of its label."""
    indent = len(longest) + 2
    first, *rest = _wrapped(text, width - 2 - indent) or [""]
    return [f"{label:<{indent}}{first}", *(" " * indent + line for line in rest)]


def _wrapped(text: str, width: int) -> list[str]:
    """The lines of a text, wrapped, without blank lines at its ends and at most one in a row within."""
    lines: list[str] = []
    for line in text.expandtabs(4).strip().splitlines():
        if line.strip() or (lines and lines[-1]):
            lines += textwrap.wrap(line, width, break_on_hyphens=False) or [""]
    return lines
