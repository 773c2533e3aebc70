"""Text snapshots of the command line: every help page, and the output of real commands on a small model.

`make snapshots` runs this file, which rewrites tests/snapshots/; tests/cli/test_snapshots.py compares. Numbers that
depend on the machine or on library versions (times, rates, sizes, losses, ids) are replaced by #.
"""

import contextlib
import io
import math
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from unittest import mock

from kdpipe.cli import main, progress
from support.commands import SURFACE
from support.source import ROOT

FOLDER = ROOT / "tests" / "snapshots"
N_DEMO_DOCUMENTS = 16
CAPTURE = ["--teacher", "teacher", "--data", "corpus.jsonl", "--seq-len", "64", "--val-fraction", "0.3"]
TRAIN = ["--from-cache", "cache", "--student", "tiny", "--max-steps", "3", "--batch-size", "2"]
# Commands in the order in which they run, by the name of their snapshot.
COMMANDS = {
    "plan": ["plan", *CAPTURE],
    "cache-teacher-dry-run": ["cache-teacher", *CAPTURE, "--out", "cache", "--dry-run"],
    "cache-teacher": ["cache-teacher", *CAPTURE, "--out", "cache"],
    "cache-teacher-again": ["cache-teacher", *CAPTURE, "--out", "cache"],
    "cache-inspect": ["cache", "inspect", "cache"],
    "cache-verify": ["cache", "verify", "cache"],
    "cache-verify-against": ["cache", "verify", "cache", "--against", "teacher", "--sample", "4"],
    "cache-copy": ["cache", "copy", "cache", "copy"],
    "cache-copy-again": ["cache", "copy", "cache", "copy"],
    "cache-copy-parts": ["cache", "copy", "cache", "some", "--parts", "0:1"],
    "train-dry-run": ["train", *TRAIN, "--out", "run", "--dry-run"],
    "train": ["train", *TRAIN, "--out", "run"],
    "train-again": ["train", *TRAIN, "--out", "run"],
    "train-output": ["train", *TRAIN, "--mode", "output", "--out", "labels"],
    "eval": ["eval", "--from-cache", "cache", "--student", "run"],
    "compare": ["compare", "labels", "run"],
    "export": ["export", "run", "--to", "hf"],
    "cache-merge-refused": ["cache", "merge", "cache", "copy", "--out", "merged"],
    "cache-subset": ["cache", "subset", "cache", "--out", "subset", "--split", "train"],
    "cache-requantize": ["cache", "requantize", "cache", "--out", "lean", "--profile", "lean"],
    "cache-export": ["cache", "export", "cache", "--to", "parquet", "--out", "tables"],
    "demo": ["demo", "--out", "demo", "--steps", "3"],
}
# What differs between machines, runs and versions, with what replaces it.
VOLATILE = (
    (r"^  text(    .*)?$", "  text    TEXT"),
    (r"\b[0-9a-f]{12,64}\b", "ID"),
    (r"[█#]+$", "BAR"),
    (r"kdpipe \d[\w.+]*", "kdpipe VERSION"),
    (r"^threads( +)\d+:", r"threads\1#:"),
    (r"^  (parts|tokenizer|tables|records|total bytes|journal) +[\d,]+$", r"  \1  #"),
    # Units too: they follow the number.
    (r"\d[\d,]*\.?\d* (kB|MB|GB|TB|bytes)(?!\w)", "# B"),
    (r"\d[\d,]*\.?\d* (s|min|h|days)( \d+ (min|h))?(?!\w)", "# s"),
    (r"-?\d[\d,]*\.?\d*(e-?\d+)? ?(%|nats|positions/s)(?!\w)", r"# \2"),
    (r"[+-]?\d[\d,]*\.\d+(e-?\d+)?|\b\d{1,3}(,\d{3})+\b|\b\d+e-\d+\b", "#"),
    (r"(?<=\S)  +(?=#)", "  "),
    # The mark of the best value.
    (r"(?<=#)( %)?\*", r"\1"),
)
SAMPLE = r"^(  (?:teacher|labels|distilled) +)[^C\s].*\n(?: {13}\S.*\n)*"
DAMAGED = {"cache-verify-damaged": ["cache", "verify", "copy"]}


def help_pages() -> Iterator[tuple[str, str]]:
    """The help of every command on a terminal of 80 columns."""
    with mock.patch.dict(os.environ, {"COLUMNS": "80"}):
        for command in SURFACE:
            yield f"help-{command.replace(' ', '-') or 'kdpipe'}", _output([*command.split(), "--help"])


def outputs(folder: Path) -> Iterator[tuple[str, str]]:
    """What the commands print at 80 columns, one after the other in a folder."""
    from kdpipe.pipeline import demo
    from support.stage_one import make_inputs

    make_inputs(folder)
    few = list(islice(demo.documents(), N_DEMO_DOCUMENTS))
    environment = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}", "COLUMNS": "80"}
    documents = mock.patch.object(demo, "documents", lambda: iter(few))
    with contextlib.chdir(folder), mock.patch.dict(os.environ, environment), documents:
        for name, words in COMMANDS.items():
            yield name, _stable(_output(words), folder)
        part = sorted(Path("copy/parts/00000").iterdir())[0]
        part.write_bytes(part.read_bytes()[:-1])
        for name, words in DAMAGED.items():
            yield name, _stable(_output(words), folder)


def _output(words: list[str]) -> str:
    out, err = io.StringIO(), io.StringIO()
    no_timed_lines = mock.patch.object(progress, "SECONDS_BETWEEN_LINES", math.inf)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), no_timed_lines:
        code = main.run(words)
    shown = [f"$ kdpipe {' '.join(words)}\n"]
    shown += [f"--- stderr\n{err.getvalue()}--- stdout\n"] if err.getvalue() else []
    shown += [out.getvalue()] + ([f"--- exit code {code}\n"] if code else [])
    return "".join(shown)


def _stable(text: str, folder: Path) -> str:
    """The text without what differs between machines, runs and versions."""
    for path, name in ((folder.resolve(), "FOLDER"), (folder, "FOLDER"), (Path(sys.executable).parent, "BIN")):
        text = text.replace(str(path), name)
    for pattern, replacement in VOLATILE:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    before, found, samples = text.partition("  prompt  ")
    return before + found + re.sub(SAMPLE, r"\1TEXT\n", samples, flags=re.MULTILINE)


def renew() -> None:
    """Rewrite all snapshots."""
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.txt"):
        old.unlink()
    with tempfile.TemporaryDirectory() as folder:
        for name, text in (*help_pages(), *outputs(Path(folder))):
            (FOLDER / f"{name}.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    renew()
