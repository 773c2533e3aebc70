"""The entry of `kdpipe`: runs one command line, and turns what went wrong into two lines and an exit code.

In: the words typed after `kdpipe`. Out: an exit code (0 done, 1 failed, 2 usage, 3 verification, 4 does not fit, 75
interrupted, 130 interrupted twice). Signals are listened to before anything else is imported, typer included.
"""

import errno
import sys
from collections.abc import Sequence

from kdpipe.cli import interrupts

UNFORESEEN = "not foreseen: run it again with --debug and report it"
STOPPED = ("interrupted", "run the same command again to go on")
# What a system may lack while libraries write: files of their own, below the temporary folder for instance.
SHORTAGES = {
    errno.ENOSPC: "free some space on that disk, or set TMPDIR to a folder of another one if it is the temporary one",
    errno.EDQUOT: "free some of your quota on that disk, or set TMPDIR to a folder of another one",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close other programs, or have the system's limit on open files raised",
}


def run(words: Sequence[str]) -> int:
    """Run one command line in this process and return its exit code."""
    import typer

    from kdpipe.cli import console
    from kdpipe.cli.commands import app
    from kdpipe.schemas.errors import Interrupted, KdpipeError

    interrupts.check()
    rest, debug = _without_debug(words)
    console.set_up(debug=debug)
    try:
        code = app(rest, prog_name="kdpipe", standalone_mode=False, obj=run)
        # typer has already turned a KeyboardInterrupt into a code of its own; a demo has told of it
        if interrupts.seen() and code != Interrupted.exit_code:
            raise Interrupted(STOPPED[0], hint=STOPPED[1])
        return code if isinstance(code, int) else 0
    except KdpipeError as error:
        console.failure(error.message, error.hint)
        return _exit_code(error.exit_code, debug)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)  # only usage errors know where they happened
        console.failure(error.format_message(), f"see `{context.command_path if context else 'kdpipe'} --help`")
        return _exit_code(error.exit_code, debug)
    except MemoryError as error:
        console.failure(
            f"no memory is left{f': {error}' if str(error) else ''}", "free some, or raise the limit (ulimit)"
        )
        return _exit_code(1, debug)
    except SystemExit as end:  # typer's answer to a pipe that breaks, of whatever library
        console.failure(f"ended by {end.__context__!r}", UNFORESEEN)
        return _exit_code(1, debug)
    except OSError as error:
        if error.errno not in SHORTAGES:
            return _unforeseen(error, debug)
        where = f" ({error.filename})" if error.filename else ""
        console.failure(f"{error.strerror}{where}", SHORTAGES[error.errno])
        return _exit_code(1, debug)
    except Exception as error:
        return _unforeseen(error, debug)


def _unforeseen(error: Exception, debug: bool) -> int:
    """Say what no one has foreseen; after a signal it is what a library has made of a KeyboardInterrupt."""
    from kdpipe.cli import console
    from kdpipe.schemas.errors import Interrupted

    if interrupts.seen():
        console.failure(*STOPPED)
        return _exit_code(Interrupted.exit_code, debug)
    console.failure(f"{type(error).__name__}: {error}", UNFORESEEN)
    return _exit_code(1, debug)


def _without_debug(words: Sequence[str]) -> tuple[list[str], bool]:
    """Take --debug out of the words before a `--`, because people add it at the end of what they typed before."""
    end = words.index("--") if "--" in words else len(words)
    rest = [word for word in words[:end] if word != "--debug"]
    return rest + list(words[end:]), len(rest) < end


def _exit_code(code: int, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exc()
    return code


def main() -> int:
    """Run the words of this process's command line; the console script hands the result to sys.exit."""
    try:
        interrupts.listen()
        code = _answered(sys.argv[1:])
        interrupts.settle()
        return code
    except KeyboardInterrupt:  # outside of a command, which deals with its own
        interrupts.settle()
        from kdpipe.cli import console, streams
        from kdpipe.schemas.errors import Interrupted

        streams.guard()
        console.failure(*STOPPED)
        return Interrupted.exit_code


def _answered(words: Sequence[str]) -> int:
    """Run one command line; an answer that could not be written is a failure, also of a command that did its work."""
    from kdpipe.cli import console, streams

    streams.guard()
    code = run(words)
    lost = streams.lost_answer()
    if lost is None:
        return code
    console.failure(
        f"the answer could not be written to stdout: {lost.strerror}",
        "nothing else was lost: run the same command again with a stdout that takes it",
    )
    return code or 1
