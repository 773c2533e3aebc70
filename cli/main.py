"""The command line: finds the command, runs it, and turns what went wrong into two lines and an exit code.

In: the words typed after `kdpipe`. Out: an exit code (0 done, 1 failed, 2 usage, 3 verification, 4 does not fit, 75
interrupted, 130 interrupted twice). Heavy imports happen inside the commands, so that `--help` answers at once.
Before it: the shell. After it: one module of `cli/` per command.
"""

import contextlib
import importlib.metadata
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from kdpipe.cli import cache, console, interrupts
from kdpipe.cli.cache_teacher import cache_teacher
from kdpipe.cli.compare import compare
from kdpipe.cli.demo import demo
from kdpipe.cli.eval import evaluate
from kdpipe.cli.export import export
from kdpipe.cli.flags import with_flags
from kdpipe.cli.plan import plan
from kdpipe.cli.stage_one_options import EXTEND, FLAGS, OUT, SET_EXAMPLE
from kdpipe.cli.stage_two_options import FLAGS as STUDENT_FLAGS
from kdpipe.cli.stage_two_options import SET_EXAMPLE as STUDENT_SET_EXAMPLE
from kdpipe.cli.train import train
from kdpipe.schemas.errors import Interrupted, KdpipeError

app = typer.Typer(
    name="kdpipe",
    help="Run a teacher once into a verifiable cache, then train students from that cache alone.",
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(asked: bool) -> None:
    if asked:
        console.answer(f"kdpipe {importlib.metadata.version('kdpipe')}")
        raise typer.Exit()


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show log lines and the traceback of an error; allowed anywhere.")
    ] = False,
) -> None:
    """Show the help when no command is named; --version and --debug are dealt with before this runs."""
    if context.invoked_subcommand is None:
        console.answer(context.get_help())


app.command("plan")(with_flags(FLAGS, plan, SET_EXAMPLE))
app.command("cache-teacher")(with_flags((*FLAGS, EXTEND, OUT), cache_teacher, SET_EXAMPLE))
app.command("train")(with_flags(STUDENT_FLAGS, train, STUDENT_SET_EXAMPLE))
app.command("eval")(evaluate)
app.command("compare")(compare)
app.add_typer(cache.app, name="cache")
app.command("export")(export)
app.command("demo")(demo)


def run(words: Sequence[str]) -> int:
    """Run one command line in this process and return its exit code."""
    rest, debug = _without_debug(words)
    console.set_up(debug=debug)
    try:
        code = app(rest, prog_name="kdpipe", standalone_mode=False)
        # typer has already turned a KeyboardInterrupt into a code of its own; a demo has told of it
        if interrupts.seen() and code != Interrupted.exit_code:
            raise Interrupted("interrupted", hint="run the same command again to go on")
        return code if isinstance(code, int) else 0
    except KdpipeError as error:
        console.failure(error.message, error.hint)
        return _exit_code(error.exit_code, debug)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)  # only usage errors know where they happened
        console.failure(error.format_message(), f"see `{context.command_path if context else 'kdpipe'} --help`")
        return _exit_code(error.exit_code, debug)
    except BrokenPipeError:
        raise
    except MemoryError as error:
        console.failure(
            f"no memory is left{f': {error}' if str(error) else ''}", "free some, or raise the limit (ulimit)"
        )
        return _exit_code(1, debug)
    except Exception as error:
        console.failure(f"{type(error).__name__}: {error}", "not foreseen: run it again with --debug and report it")
        return _exit_code(1, debug)


def _without_debug(words: Sequence[str]) -> tuple[list[str], bool]:
    """Take --debug out of the words before a `--`, because people add it at the end of what they typed before."""
    end = words.index("--") if "--" in words else len(words)
    rest = [word for word in words[:end] if word != "--debug"]
    return rest + list(words[end:]), len(rest) < end


def _exit_code(code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    return code


def main() -> int:
    """Run the words of this process's command line; the console script hands the result to sys.exit."""
    interrupts.listen()
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader, `head` for instance, has gone; keep the interpreter's own flush quiet
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
