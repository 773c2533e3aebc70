"""Temporary folders of this process: the one place that makes them, and says which setting moves them elsewhere.

In: what a folder is for. Out: a folder below $TMPDIR that is gone afterwards, or an error that names the folder, the
space that is free there and what is needed.
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
    """A temporary folder; `doing` names the work that fails without it, `n_bytes` what it will hold, where known."""
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
        # Without a free file number no folder can be removed: then the error that came first is the one to report.
        with nullcontext() if is_done else suppress(OSError):
            folder.cleanup()


@contextmanager
def temporary_folder_errors(doing: str) -> Iterator[None]:
    """Name the place of temporary folders where none can be made."""
    try:
        yield
    except OSError as error:
        raise _refused(doing, _place(), error) from error


def _refused(doing: str, where: Path, error: OSError) -> WriteError:
    hint = advice(error, where) if error.errno in SHORTAGES else "set TMPDIR to a folder that you may write to"
    return WriteError(f"{doing}: {error.strerror} ({where})", hint=hint)


def _place() -> Path:
    """Where temporary folders are made; the first that is looked at, where none can be written to."""
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:
        return Path(os.environ.get("TMPDIR", "/tmp"))
