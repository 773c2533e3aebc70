"""A gate that processes wait at until all have come, so that they do the next thing at the same moment.

In: how many come. Out: `pass_through` for the children, `wait` and `open` for the test.
"""

import os
import select

MEETING_SECONDS = 900


class Gate:
    """Processes wait at it until all have come."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._came_read, self._came_write = os.pipe()
        self._go_read, self._go_write = os.pipe()

    def pass_through(self) -> None:
        """Say that one has come, and wait."""
        os.write(self._came_write, b".")
        assert select.select([self._go_read], [], [], MEETING_SECONDS)[0], "the gate does not open"
        os.read(self._go_read, 1)

    def wait(self) -> None:
        """Wait until all have come."""
        for _ in range(self._n):
            assert select.select([self._came_read], [], [], MEETING_SECONDS)[0], "somebody does not come"
            os.read(self._came_read, 1)

    def open(self) -> None:
        """Let them go."""
        os.write(self._go_write, b"." * self._n)

    def close(self) -> None:
        """Close the pipes when no process waits any longer."""
        for descriptor in (self._came_read, self._came_write, self._go_read, self._go_write):
            os.close(descriptor)
