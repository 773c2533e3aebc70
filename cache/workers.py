"""Work names: whose an unfinished folder in tmp/ is, and whether its worker still lives.

In: what is being built. Out: a name that nobody else uses; from such a name, whether its owner is gone.
Before it: nothing. After it: `files.py` builds under these names and sweeps. A courtesy, not a lock: two writers of
one thing never harm each other, and a name that cannot be judged is left alone.
"""

import os
import secrets
import socket
from pathlib import Path


def work_name(what: str) -> str:
    """A name that no other writer uses, and that says whose it is."""
    host = "".join(letter if letter.isalnum() else "-" for letter in socket.gethostname())[:40]
    process = os.getpid()
    began = _began(process) or "0"
    return f"{what}~{host}~{boot_id()}~{_pid_space()}~{process}~{began}~{secrets.token_hex(4)}"


def is_abandoned(name: str) -> bool:
    """Whether a work name belongs to a process of this machine that is gone; other machines' are left alone."""
    try:
        _, host, boot, space, pid, began, _ = name.split("~")
        process = int(pid)
    except ValueError:
        return False
    _, own_host, own_boot, own_space, _, _, _ = work_name("").split("~")
    if host != own_host:
        return False
    if boot != own_boot:
        return True
    return space == own_space and not _is_alive(process, began)


def is_own(name: str) -> bool:
    """Whether a work name was made by this process."""
    return name.split("~")[1:6] == work_name("").split("~")[1:6]


def boot_id() -> str:
    """What changes when this machine starts anew, so that an old process number is not taken for a living one."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    except OSError:
        return "0"


def _pid_space() -> str:
    """Process numbers mean something only within one of these: containers of one machine have their own."""
    try:
        return str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        return "0"


def _is_alive(process: int, began: str) -> bool:
    """Whether a process lives and is the one that began then: numbers are given out again."""
    if os.name == "nt":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return _began(process) in (began, None) or began == "0"


def _began(process: int) -> str | None:
    """When a process began, in ticks; "" for one that has ended and is still to be waited for, None where unknown."""
    try:
        state, *numbers = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return "" if state in "ZX" else numbers[18]
