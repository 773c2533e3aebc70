"""`CopyWatch`: whoever follows a copy, and the one who does not.

In: what a copy says while it goes on. Out: nothing.
"""

from typing import Protocol


class CopyWatch(Protocol):
    """Told from any thread: `begin` once, then bytes and parts as they come; `say` at any time."""

    def say(self, text: str) -> None:
        """Something worth a line."""

    def begin(self, n_parts: int, n_bytes: int) -> None:
        """So much is to be moved; what is there already and good is not in it."""

    def moved(self, n_bytes: int) -> None:
        """So many bytes more are here; fewer than none where they were wrong."""


class SilentCopyWatch:
    """Nobody follows a copy."""

    def say(self, text: str) -> None:
        """Nothing."""

    def begin(self, n_parts: int, n_bytes: int) -> None:
        """Nothing."""

    def moved(self, n_bytes: int) -> None:
        """Nothing."""
