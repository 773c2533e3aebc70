"""The family of errors: every class has its exit code, and can be pickled."""

import copy

from kdpipe.schemas import errors
from kdpipe.schemas.errors import KdpipeError

EXIT_CODES = {
    "KdpipeError": 1,
    "UsageError": 2,
    "ConfigError": 2,
    "LockHeld": 2,
    "Untrainable": 2,
    "WriteError": 1,
    "FileDamaged": 3,
    "CacheError": 1,
    "CacheWriteError": 1,
    "CacheIncomplete": 2,
    "CacheDamaged": 3,
    "FileReplaced": 1,
    "ConnectionFailed": 1,
    "Unreachable": 75,
    "VerificationError": 3,
    "Incompatible": 4,
    "Interrupted": 75,
}


def family() -> dict[str, type[KdpipeError]]:
    found = vars(errors).items()
    return {name: kind for name, kind in found if isinstance(kind, type) and issubclass(kind, KdpipeError)}


def test_every_error_has_its_documented_exit_code() -> None:
    assert {name: kind.exit_code for name, kind in family().items()} == EXIT_CODES


def test_an_error_shows_its_message_and_keeps_its_hint() -> None:
    error = errors.CacheDamaged("part 3 is short", hint="copy it again")
    assert (error.message, error.hint) == ("part 3 is short", "copy it again")
    assert str(error) == "part 3 is short\nhint: copy it again"
    assert (str(KdpipeError("no hint")), KdpipeError("no hint").hint) == ("no hint", None)


def test_an_error_crosses_processes_with_its_hint_and_nearest_name() -> None:
    error = copy.copy(errors.ConfigError("no run", hint="look", nearest="runs/a"))  # copies as a pickle does
    assert type(error) is errors.ConfigError
    assert (error.message, error.hint, error.nearest) == ("no run", "look", "runs/a")
