"""Every error that kdpipe raises on purpose, with the exit code that the command line gives it.

In: a message (what was found, what was expected, where) and a hint (what to do next). Out: an exception that
`cli/main.py` shows as two lines on stderr.
"""

import signal
from typing import ClassVar

# What a person or a system sends to stop a command, which ends with `Interrupted`. Windows has no SIGHUP.
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class KdpipeError(Exception):
    """Something failed while running; the parent of every error a person is meant to read."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        """Carry the hint too when the error crosses from a worker process."""
        return (_rebuild, (type(self), self.message, self.hint))


def _rebuild(kind: type[KdpipeError], message: str, hint: str | None) -> KdpipeError:
    return kind(message, hint=hint)


class UsageError(KdpipeError):
    """The command line asks for something that cannot be."""

    exit_code = 2


class ConfigError(UsageError):
    """A setting, a configuration file or a path given by a person is wrong."""


class LockHeld(UsageError):
    """Another process writes to the folder, or its lock says so."""


class Untrainable(ConfigError):
    """A document of which what was asked for cannot be learnt: it is refused, or left out where a person said so."""


class CacheError(KdpipeError):
    """The parent of what can be wrong with a cache."""


class CacheWriteError(CacheError):
    """A cache could not be written: disk full, no permission, another writer."""


class CacheIncomplete(CacheError):
    """Planned parts are not there yet."""

    exit_code = 2


class CacheDamaged(CacheError):
    """Bytes of a cache are not what they claim to be."""

    exit_code = 3


class FileReplaced(CacheError):
    """A file is another one than that of which the first bytes were read."""


class ConnectionFailed(CacheError):
    """Nothing listens at an address, or its host is unknown: it heals only where the place has answered before."""


class Unreachable(CacheError):
    """A place does not answer, or not as it should; the same command run again goes on.

    `wait_seconds` is the pause that the place asks for; one that `is_final` has been retried already.
    """

    exit_code = 75

    def __init__(
        self, message: str, *, hint: str | None = None, wait_seconds: float = 0.0, is_final: bool = False
    ) -> None:
        super().__init__(message, hint=hint)
        self.wait_seconds, self.is_final = wait_seconds, is_final


class VerificationError(KdpipeError):
    """A check that a person asked for has found problems."""

    exit_code = 3


class Incompatible(KdpipeError):
    """Cache and reader, or cache and student (tokenizer, temperature, loss), do not fit together."""

    exit_code = 4


class Interrupted(KdpipeError):
    """Stopped cleanly on request; the same command run again goes on from here."""

    exit_code = 75
