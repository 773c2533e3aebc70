"""The command line as people and scripts meet it: help, version, errors, exit codes, speed."""

import errno
import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
import typer

from kdpipe.cli import commands as command_line
from kdpipe.cli import main
from kdpipe.schemas import errors
from support.commands import SURFACE, help_of, kdpipe, starts_fast

HEAVY = ("torch", "transformers", "datasets", "numpy", "zarr", "pyarrow", "pydantic", "rich.console")


@pytest.mark.parametrize("command", sorted(SURFACE), ids=lambda command: command or "kdpipe")
def test_the_surface_is_exactly_what_is_documented(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert help_of(command, capsys) == SURFACE[command]


def test_every_command_in_the_help_has_its_line_in_the_surface(capsys: pytest.CaptureFixture[str]) -> None:
    for command, (commands, _) in SURFACE.items():
        assert all(f"{command} {name}".strip() in SURFACE for name in commands)


@pytest.mark.parametrize(
    "command", sorted(name for name, (_, options) in SURFACE.items() if {"--set", "--seed"} <= options)
)
def test_the_example_of_set_is_a_setting_of_its_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A command refuses an unknown setting before it misses its cache or teacher, so a good one changes nothing."""

    def refusal(*words: str) -> str:
        assert main.run([*command.split(), *words]) == 2
        return capsys.readouterr().err

    assert main.run([*command.split(), "--help"]) == 0
    example = re.search(r"e\.g\. (\S+=\S+) \(repeatable\)", " ".join(capsys.readouterr().out.split()))
    assert example is not None
    assert refusal("--set", example[1]) == refusal()
    assert "unknown setting" in refusal("--set", "no.such=1")


def test_help_is_fast_and_imports_nothing_heavy() -> None:
    assert starts_fast([kdpipe(), "--help"])
    report = "import sys; from kdpipe.cli.main import run; run(['--help']); print(*sys.modules, file=sys.stderr)"
    answer = subprocess.run([sys.executable, "-c", report], check=True, capture_output=True, text=True)
    assert not set(answer.stderr.split()) & set(HEAVY)


def test_version_is_the_installed_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--version"]) == 0
    assert capsys.readouterr().out == f"kdpipe {importlib.metadata.version('kdpipe')}\n"


def test_a_bare_call_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("Usage: kdpipe")
    assert shown.err == ""


def test_an_unknown_command_is_refused_in_two_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["no-such-thing"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "error: No such command 'no-such-thing'.\nhint: see `kdpipe --help`\n"


def test_an_unknown_option_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--versoin"]) == 2
    assert "--version" in capsys.readouterr().err


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[BaseException]]:
    """A command line whose one command, `fail`, raises what is put in the list."""
    raised: list[BaseException] = []
    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)

    @app.callback()
    def group() -> None:
        """Keep `fail` a command of a group."""

    @app.command()
    def fail(json: bool = False) -> None:
        raise raised[0]

    monkeypatch.setattr(command_line, "app", app)
    yield raised


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.KdpipeError, 1),
        (errors.CacheWriteError, 1),
        (errors.ConfigError, 2),
        (errors.CacheDamaged, 3),
        (errors.VerificationError, 3),
        (errors.Incompatible, 4),
        (errors.Interrupted, 75),
    ],
)
def test_an_error_becomes_two_lines_and_its_exit_code(
    kind: type[errors.KdpipeError], code: int, failing: list[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    failing.append(kind("part 3 is short", hint="copy it again"))
    assert main.run(["fail"]) == code
    shown = capsys.readouterr()
    lead = "stopped" if kind is errors.Interrupted else "error"
    assert (shown.out, shown.err) == ("", f"{lead}: part 3 is short\nhint: copy it again\n")


def test_an_error_without_a_hint_is_one_line(failing: list[BaseException], capsys: pytest.CaptureFixture[str]) -> None:
    failing.append(errors.KdpipeError("disk full"))
    assert main.run(["fail"]) == 1
    assert capsys.readouterr().err == "error: disk full\n"


def test_an_unexpected_error_shows_no_traceback(
    failing: list[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    failing.append(ZeroDivisionError("division by zero"))
    assert main.run(["fail"]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: ZeroDivisionError: division by zero\nhint: ")
    assert "Traceback" not in shown


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.ENOSPC, "TMPDIR"),
        (errno.EDQUOT, "quota"),
        (errno.EFBIG, "ulimit -f"),
        (errno.EMFILE, "ulimit -n"),
        (errno.ENFILE, "open files"),
    ],
)
def test_what_the_system_lacks_is_nothing_to_report(
    number: int, hint: str, failing: list[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    failing.append(OSError(number, os.strerror(number), "/there/file"))
    assert main.run(["fail"]) == 1
    messages = capsys.readouterr().err
    assert messages.startswith(f"error: {os.strerror(number)} (/there/file)\nhint: ")
    assert hint in messages and "report" not in messages and messages.count("\n") == 2


def test_a_pipe_that_breaks_elsewhere_is_not_passed_over(
    failing: list[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    failing.append(BrokenPipeError(errno.EPIPE, "Broken pipe"))
    assert main.run(["fail"]) == 1
    assert "BrokenPipeError" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--debug", "fail"], ["fail", "--debug"]])
def test_debug_shows_the_traceback_at_any_position(
    words: list[str], failing: list[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    failing.append(errors.CacheDamaged("part 3 is short"))
    assert main.run(words) == 3
    assert "Traceback" in capsys.readouterr().err


def test_words_after_a_double_dash_are_left_alone() -> None:
    assert main._without_debug(["a", "--debug", "--", "--debug"]) == (["a", "--", "--debug"], True)
    assert main._without_debug(["a", "--", "--debug"]) == (["a", "--", "--debug"], False)


def test_a_misspelled_command_is_answered_with_the_nearest(
    failing: list[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["fial"]) == 2
    assert capsys.readouterr().err == "error: No such command 'fial'. Did you mean 'fail'?\nhint: see `kdpipe --help`\n"


def test_a_misspelled_option_of_a_command_points_to_its_help(
    failing: list[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["fail", "--jsn"]) == 2
    shown = capsys.readouterr().err
    assert "--json" in shown.splitlines()[0]
    assert shown.splitlines()[1] == "hint: see `kdpipe fail --help`"


def test_an_option_of_another_tool_is_answered_with_the_name_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["train", "--learning-rate", "1e-4"]) == 2
    assert "optimizer.lr (--lr)" in capsys.readouterr().err.splitlines()[0]


def test_cache_teacher_as_two_words_suggests_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["cache", "teacher"]) == 2
    assert "'kdpipe cache-teacher'" in capsys.readouterr().err


def test_completion_is_printed_for_a_shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("_KDPIPE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "kdpipe cache-")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert main.run([]) == 0
    assert capsys.readouterr().out.split() == ["cache-teacher"]


def test_a_train_page_has_panels_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["train", "-h"]) == 0
    lines = capsys.readouterr().out.splitlines()
    panels = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    names = ("Student", "Cache", "Losses", "Optimizer", "Run", "Guard", "Output", "Machine", "Options", "Examples")
    assert panels == [f"{name}:" for name in names]
