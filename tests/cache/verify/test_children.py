"""Child processes: signals are the parent's business, and a child ends with its parent."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kdpipe.cache.verify.children import shielded

pytestmark = pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="this system has no signal masks")

# Starts a child that holds its stdout open, reports when the child watches, and is killed.
PARENT = """
import subprocess, sys, time
begin = "import time; from kdpipe.cache.verify.children import end_with_parent; end_with_parent()"
subprocess.Popen([sys.executable, "-c", begin + "; print('watches', flush=True); time.sleep(600)"])
time.sleep(600)
"""


def blocked_in_child() -> set[int]:
    """The signals that a new child process has blocked."""
    command = [sys.executable, "-c", "import signal; print(*map(int, signal.pthread_sigmask(signal.SIG_BLOCK, [])))"]
    return set(map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()))


def test_a_child_that_begins_shielded_does_not_hear_the_terminal() -> None:
    with shielded():
        blocked = blocked_in_child()
    assert blocked == {signal.SIGINT, signal.SIGHUP}
    assert blocked_in_child() == set()


def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "watches\n"
        parent.kill()
        assert parent.stdout.read() == ""  # ends when the child has let go of it
