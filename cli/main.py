"""Entry point of `kdpipe`: runs one command line; an error becomes two lines and an exit code.

Exit codes: 0 done, 1 failed, 2 usage, 3 verification, 4 incompatible, 75 interrupted, 130 interrupted twice. Signal
handlers are installed before anything else is imported, typer included.
"""

import errno
import re
import sys
from collections.abc import Sequence

from kdpipe.cli import interrupts

UNEXPECTED = "unexpected error; re-run with --debug and please report it"
STOPPED = ("interrupted", "re-run the same command to resume")
# System limits that libraries can hit while they write, e.g. in the temporary folder.
SHORTAGES = {
    errno.ENOSPC: "free some space on that disk, or set TMPDIR to a folder on another one for temporary files",
    errno.EDQUOT: "free some of your quota on that disk, or set TMPDIR to a folder on another one",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close other programs, or ask to raise the system's limit on open files",
}


def run(words: Sequence[str]) -> int:
    """Run one command line in this process and return its exit code."""
    import typer

    from kdpipe.cli import console
    from kdpipe.cli.commands import app
    from kdpipe.cli.help_pages import option_in_other_tools
    from kdpipe.schemas.errors import Interrupted, KdpipeError

    interrupts.check()
    rest, debug = _without_debug(words)
    console.set_up(debug=debug)
    try:
        code = app(rest, prog_name="kdpipe", standalone_mode=False, obj=run)
        # typer has already turned a KeyboardInterrupt into its own code; the demo has reported it
        if interrupts.seen() and code != Interrupted.exit_code:
            raise Interrupted(STOPPED[0], hint=STOPPED[1])
        return code if isinstance(code, int) else 0
    except KdpipeError as error:
        console.failure(error.message, error.hint, error.label)
        return _exit_code(error.exit_code, debug)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)  # only usage errors have it
        message = _plain(error.format_message())
        option = getattr(error, "option_name", None) if hasattr(error, "possibilities") else None  # an unknown option
        if option and (here := option_in_other_tools(option)) is not None:
            message = f"No such option: {option}: here it is {here}"
        console.failure(message, f"see `{context.command_path if context else 'kdpipe'} --help`")
        return _exit_code(error.exit_code, debug)
    except MemoryError as error:
        console.failure(
            f"out of memory{f': {error}' if str(error) else ''}", "free some memory, or raise the limit (ulimit)"
        )
        return _exit_code(1, debug)
    except SystemExit as end:  # typer exits when any library's pipe breaks, and after completion
        if end.__context__ is None:
            return end.code if isinstance(end.code, int) else 0
        console.failure(f"ended by {end.__context__!r}", UNEXPECTED)
        return _exit_code(1, debug)
    except OSError as error:
        if error.errno not in SHORTAGES:
            return _unexpected(error, debug)
        where = f" ({error.filename})" if error.filename else ""
        console.failure(f"{error.strerror}{where}", SHORTAGES[error.errno])
        return _exit_code(1, debug)
    except Exception as error:
        return _unexpected(error, debug)


def _plain(message: str) -> str:
    """The message about an argument, without the wording of pydantic."""
    message = message.replace("Value error, ", "")
    message = re.sub(r"Input should be a valid integer.*", "expected a whole number", message)
    return re.sub(r"Input should be a valid number.*", "expected a number", message)


def _unexpected(error: Exception, debug: bool) -> int:
    """Report an unexpected error; after a signal, a library has turned the KeyboardInterrupt into it."""
    from kdpipe.cli import console
    from kdpipe.schemas.errors import Interrupted

    if interrupts.seen():
        console.failure(*STOPPED, Interrupted.label)
        return _exit_code(Interrupted.exit_code, debug)
    console.failure(f"{type(error).__name__}: {error}", UNEXPECTED)
    return _exit_code(1, debug)


def _without_debug(words: Sequence[str]) -> tuple[list[str], bool]:
    """Remove --debug from the arguments before a `--`: people append it to the command they typed before."""
    end = words.index("--") if "--" in words else len(words)
    rest = [word for word in words[:end] if word != "--debug"]
    return rest + list(words[end:]), len(rest) < end


def _exit_code(code: int, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exc()
    return code


def main() -> int:
    """Run this process's command line; the console script passes the result to sys.exit."""
    try:
        interrupts.listen()
        code = _run_and_flush(sys.argv[1:])
        interrupts.settle()
        return code
    except KeyboardInterrupt:  # outside of a command, which handles its own
        interrupts.settle()
        from kdpipe.cli import console, streams
        from kdpipe.schemas.errors import Interrupted

        streams.guard()
        console.failure(*STOPPED, Interrupted.label)
        return Interrupted.exit_code


def _run_and_flush(words: Sequence[str]) -> int:
    """Run one command line; a report that could not be written to stdout is a failure even if the command succeeded."""
    from kdpipe.cli import console, streams

    streams.guard()
    code = run(words)
    lost = streams.lost_answer()
    if lost is None:
        return code
    console.failure(
        f"cannot write to stdout: {lost.strerror}",
        "files are complete; re-run the same command with a writable stdout to see its output",
    )
    return code or 1
