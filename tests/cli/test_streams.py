"""Closed streams: progress is dropped and the work continues, a lost answer is a reported failure."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.commands import kdpipe

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="streams are closed the POSIX way")

# A command that continues without a reader, and then answers.
WORK = """
import os, sys, logging, warnings
from pathlib import Path
from kdpipe.cli import commands, console, main
@commands.app.command()
def work() -> None:
    sys.stdin.readline()  # by now the readers have gone
    for n in range(3):
        console.note(f"step {n}")
        logging.getLogger("kdpipe").warning("a log line")
        warnings.warn("a warning", stacklevel=1)
        sys.stderr.write("a bar of a library\\r")
    Path("done").write_text(f"{sys.stdout.fileno()} {sys.stderr.fileno()} {os.open(os.devnull, os.O_RDONLY)}")
    for n in range(20_000):
        console.answer(f"answer {n}")
sys.exit(main.main())
"""
LOST = re.compile(r"error: cannot write to stdout: (.*)\nhint: .*\n")


def worked(tmp_path: Path, redirections: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command above in a shell that redirects its streams."""
    script = tmp_path / "work.py"
    script.write_text(WORK, encoding="utf-8")
    line = f"exec '{sys.executable}' -W error::DeprecationWarning '{script}' work {redirections}"
    done = subprocess.run(
        ["sh", "-c", line], cwd=tmp_path, input="go\n", capture_output=True, text=True, timeout=900, check=False
    )
    assert (tmp_path / "done").is_file(), done
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("redirections", "why"),
    [(">&-", "Bad file descriptor"), (">/dev/full", "No space left on device")],
    ids=["closed", "full"],
)
def test_an_answer_that_cannot_be_written_is_a_failure(tmp_path: Path, redirections: str, why: str) -> None:
    code, _, messages = worked(tmp_path, redirections)
    lost = LOST.search(messages)
    assert code == 1
    assert lost is not None and lost[1] == why
    assert "step 2" in messages


@pytest.mark.slow
@pytest.mark.parametrize("redirections", ["2>&-", "2>/dev/full"], ids=["closed", "full"])
def test_progress_that_cannot_be_written_is_dropped(tmp_path: Path, redirections: str) -> None:
    code, out, _ = worked(tmp_path, redirections)
    assert code == 0
    assert out.splitlines()[-1] == "answer 19999"


@pytest.mark.slow
def test_files_never_take_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    assert worked(tmp_path, ">&- 2>&-")[0] == 1
    out, err, opened = map(int, (tmp_path / "done").read_text().split())
    assert (out, err) == (1, 2) and opened > 2


def gone(tmp_path: Path, *, out: bool, err: bool, words: tuple[str, ...]) -> tuple[int, str]:
    """Run a program whose streams are closed before its first output: exit code, and the output of the other stream."""
    read, write = os.pipe()
    process = subprocess.Popen(
        words,
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=write if out else subprocess.PIPE,
        stderr=write if err else subprocess.PIPE,
        text=True,
    )
    os.close(write)
    os.close(read)
    shown, messages = process.communicate("go\n", timeout=900)
    return process.returncode, "".join(text for text in (shown, messages) if text)


def program(tmp_path: Path) -> tuple[str, ...]:
    script = tmp_path / "work.py"
    script.write_text(WORK, encoding="utf-8")
    return sys.executable, str(script), "work"


def test_the_work_continues_when_the_reader_of_progress_has_exited(tmp_path: Path) -> None:
    code, out = gone(tmp_path, out=False, err=True, words=program(tmp_path))
    assert (code, out.splitlines()[-1]) == (0, "answer 19999")


def test_the_work_is_done_when_the_reader_of_everything_has_gone(tmp_path: Path) -> None:
    """As with `2>&1 | head -1`: no reader is left."""
    assert gone(tmp_path, out=True, err=True, words=program(tmp_path)) == (0, "")
    assert (tmp_path / "done").is_file()


def test_an_answer_whose_reader_has_gone_is_lost_in_one_sentence(tmp_path: Path) -> None:
    code, messages = gone(tmp_path, out=True, err=False, words=program(tmp_path))
    lost = LOST.search(messages)
    assert (code, lost and lost[1]) == (1, "Broken pipe")
    assert messages.count("error:") == 1 and "Traceback" not in messages


def test_a_help_page_whose_reader_has_gone_shows_no_traceback(tmp_path: Path) -> None:
    code, messages = gone(tmp_path, out=True, err=False, words=(kdpipe(), "--help"))
    assert code == 1
    assert LOST.fullmatch(messages)


def test_a_terminal_that_was_closed_does_not_end_the_work(tmp_path: Path) -> None:
    pty = pytest.importorskip("pty", reason="a terminal is made the POSIX way")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        program(tmp_path), cwd=tmp_path, stdin=subprocess.PIPE, stdout=theirs, stderr=theirs, text=True
    )
    os.close(theirs)
    os.close(ours)
    process.communicate("go\n", timeout=900)
    assert process.returncode == 0
    assert (tmp_path / "done").is_file()
