"""What is printed: the right stream, nothing that steers a terminal, bars that any terminal can show."""

import io
import json
import logging
import sys

import pytest

from kdpipe.cli import console
from kdpipe.schemas.checkpoint import Best


def test_answers_go_to_stdout_and_the_rest_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    console.answer("42")
    console.note("half way")
    console.failure("disk full", "free some space")
    console.failure("no hint", None)
    shown = capsys.readouterr()
    assert shown.out == "42\n"
    assert shown.err == "half way\nerror: disk full\nhint: free some space\nerror: no hint\n"


def test_warnings_of_lm_eval_are_shown_with_debug_only() -> None:
    library, own = logging.getLogger("lm_eval.models.huggingface"), logging.getLogger("kdpipe")
    console.set_up(debug=True)
    assert library.isEnabledFor(logging.WARNING)
    console.set_up(debug=False)
    assert not library.isEnabledFor(logging.WARNING)
    assert library.isEnabledFor(logging.ERROR) and own.isEnabledFor(logging.WARNING)


def test_a_report_is_one_document_for_a_program_and_its_page_for_a_person(capsys: pytest.CaptureFixture[str]) -> None:
    report = Best(step=3, value=0.5)
    console.reply(report, "best at step 3", as_json=False)
    assert capsys.readouterr().out == "best at step 3\n"
    console.reply(report, "best at step 3", as_json=True)
    assert json.loads(capsys.readouterr().out) == {"step": 3, "value": 0.5}


def test_control_characters_are_spelled_out(capsys: pytest.CaptureFixture[str]) -> None:
    console.answer("a\x1b[31mb\x9bc\u202ed\r\te\n")
    assert capsys.readouterr().out == "a\\x1b[31mb\\x9bc\\x202ed\\x0d\te\n\n"


class TerminalStream(io.StringIO):
    """A stream of a terminal."""

    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch, **environment: str) -> TerminalStream:
    """A terminal as stdout and stderr."""
    stream = TerminalStream()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    for name, value in {"TERM": "xterm", "NO_COLOR": "", **environment}.items():
        monkeypatch.setenv(name, value)
    return stream


def test_a_terminal_has_colored_labels_and_keeps_foreign_escapes_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = terminal(monkeypatch)
    console.failure("disk full", "free some space")
    console.failure("interrupted", None, "stopped")
    console.note(console.warning_text("look\x1b[2Jhere"))
    console.answer(f"a {console.styled('0.25', 'best', sys.stdout)} \x1b[35mb\x1b[0m")
    assert stream.getvalue().splitlines() == [
        "\x1b[1;31merror:\x1b[0m disk full",
        "\x1b[1mhint:\x1b[0m free some space",
        "\x1b[33mstopped:\x1b[0m interrupted",
        "\x1b[33mwarning:\x1b[0m look\\x1b[2Jhere",
        "a \x1b[32m0.25\x1b[0m \\x1b[35mb\\x1b[0m",
    ]


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_color_and_simple_terminals_get_plain_text(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    stream = terminal(monkeypatch, **{name: value})
    console.failure("disk full", None)
    console.answer(console.styled("0.25", "best", sys.stdout) + "\x1b[32mgreen\x1b[0m")
    assert stream.getvalue() == "error: disk full\n0.25\\x1b[32mgreen\\x1b[0m\n"


def test_a_document_is_ascii_and_means_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"name": "na\u00efve \x1b \x9b", "bytes": 3}
    console.document(value)
    text = capsys.readouterr().out
    assert text.isascii()
    assert "\x1b" not in text
    assert json.loads(text) == value


def test_json_output_refuses_a_non_finite_number() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        console.document({"kl": float("nan")})


@pytest.mark.parametrize(("share", "length"), [(0.0, 0), (0.5, 5), (1.0, 10), (7.0, 10), (-1.0, 0)])
def test_a_bar_is_as_long_as_its_share(share: float, length: int) -> None:
    assert len(console.bar(share, width=10)) == length


@pytest.mark.parametrize(("encoding", "block"), [("utf-8", "\u2588"), ("ascii", "#"), ("latin-1", "#")])
def test_a_bar_uses_what_the_terminal_can_show(encoding: str, block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    assert console.bar(1.0, width=3) == block * 3
