"""Temporary folders, all created here, so that every error names TMPDIR as the setting to change.

In: what a folder is for. Out: a folder below $TMPDIR that is deleted afterwards, or an error with the folder, its free
space and the needed space.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from kdpipe.cache.durable.files import SHORTAGES, advice
from kdpipe.schemas.errors import WriteError


@contextmanager
def scratch_folder(prefix: str, doing: str, n_bytes: int | None = None) -> Iterator[Path]:
    """A temporary folder; `doing` names the task for error messages, `n_bytes` is its expected size, if known."""
    doing = doing if n_bytes is None else f"{doing}, {n_bytes:,} bytes"
    with temporary_folder_errors(doing):
        folder = tempfile.TemporaryDirectory(prefix=prefix)
    is_done = False
    try:
        yield Path(folder.name)
        is_done = True
    except OSError as error:
        if error.errno not in SHORTAGES:
            raise
        raise _refused(doing, Path(folder.name), error) from error
    finally:
        # Without a free file descriptor the cleanup fails too: then the first error is the one to report.
        with nullcontext() if is_done else suppress(OSError):
            folder.cleanup()


@contextmanager
def temporary_folder_errors(doing: str) -> Iterator[None]:
    """Translate errors of creating a temporary folder."""
    try:
        yield
    except OSError as error:
        raise _refused(doing, _place(), error) from error


def _refused(doing: str, where: Path, error: OSError) -> WriteError:
    hint = advice(error, where) if error.errno in SHORTAGES else "set TMPDIR to a writable folder"
    return WriteError(f"{doing}: {error.strerror} ({where})", hint=hint)


def _place() -> Path:
    """The folder for temporary folders; the first candidate if none is writable."""
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:
        return Path(os.environ.get("TMPDIR", "/tmp"))
