"""Every error that kdpipe raises on purpose, with its exit code.

In: a message (what was found, what was expected, where), a hint (what to do next) and the nearest valid name. Out: an
exception that Python and `cli/main.py` show as two lines.
"""

import signal
from collections.abc import Iterable
from typing import ClassVar

# Signals that stop a command, which then ends with `Interrupted`. Windows has no SIGHUP.
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class KdpipeError(Exception):
    """The parent of every error that is shown to users."""

    exit_code: ClassVar[int] = 1
    label: ClassVar[str] = "error"

    def __init__(self, message: str, *, hint: str | None = None, nearest: str | None = None) -> None:
        super().__init__(message)
        self.message, self.hint, self.nearest = message, hint, nearest

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\nhint: {self.hint}"

    def __reduce__(self) -> tuple[object, ...]:
        """Keep hint and nearest name when the error is sent from a worker process."""
        return (_rebuild, (type(self), self.message, self.hint, self.nearest))


def _rebuild(kind: type[KdpipeError], message: str, hint: str | None, nearest: str | None) -> KdpipeError:
    error = kind(message, hint=hint)
    error.nearest = nearest
    return error


class UsageError(KdpipeError):
    """The command line requests something impossible."""

    exit_code = 2


class ConfigError(UsageError):
    """A setting, a configuration file or a path is wrong."""


class LockHeld(UsageError):
    """Another process writes to the folder, or holds its lock."""


class Untrainable(ConfigError):
    """A document without tokens to train on, which is refused, or skipped with the setting for it."""


class WriteError(KdpipeError):
    """A file or folder could not be written: disk full, no permission."""


class FileDamaged(KdpipeError):
    """A file that kdpipe wrote does not have the expected content."""

    exit_code = 3


class CacheError(KdpipeError):
    """The parent of the errors of caches."""


class CacheWriteError(CacheError):
    """A cache refused what was to be written: wrong input, an incomplete part, another writer."""


class CacheIncomplete(CacheError):
    """Planned parts are missing."""

    exit_code = 2


class CacheDamaged(CacheError, FileDamaged):
    """The bytes of a cache do not match their checksums, or break the rules of the format."""

    exit_code = 3


class FileReplaced(CacheError):
    """A file was replaced while it was read."""


class ConnectionFailed(CacheError):
    """Connection refused or host unknown: retried only if the host has answered before."""


class Unreachable(CacheError):
    """A remote store does not answer, or not correctly; re-running the command resumes.

    `wait_seconds` is the pause that the server requested; an error with `is_final` has been retried already.
    """

    exit_code = 75

    def __init__(
        self, message: str, *, hint: str | None = None, wait_seconds: float = 0.0, is_final: bool = False
    ) -> None:
        super().__init__(message, hint=hint)
        self.wait_seconds, self.is_final = wait_seconds, is_final


class VerificationError(KdpipeError):
    """A requested verification found problems."""

    exit_code = 3


class Incompatible(KdpipeError):
    """Cache and reader, or cache and student (tokenizer, temperature, loss), are not compatible."""

    exit_code = 4


class Interrupted(KdpipeError):
    """Stopped cleanly by a signal; re-running the command resumes."""

    exit_code = 75
    label = "stopped"


def nearest_name(name: str, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The name that was probably meant."""
    import difflib

    return next(iter(difflib.get_close_matches(name, list(names), n=1, cutoff=cutoff)), None)


def first_line(error: BaseException) -> str:
    """The first line of another library's error, or its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
