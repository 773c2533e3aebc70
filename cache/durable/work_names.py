"""Which process is writing, and whether it still lives: for work names in tmp/, and for the locks of `lock.py`.

In: what is being built. Out: a name that nobody else uses; from such a name, whether its owner is gone. A courtesy, not
a lock: two writers of one thing never harm each other, and a name that cannot be judged is left alone.
"""

import hashlib
import os
import re
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_MACHINE_ID: Final = Path("/etc/machine-id")
# machine-id(5): the file may also be empty, or say "uninitialized".
_IS_ID: Final = re.compile(rb"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process and its machine; `started` is in ticks since the machine booted, "0" where that is not known.

    `machine` is empty where the machine has no id of its own, and in work names, which do not hold it.
    """

    host: str
    machine: str = ""
    boot: str
    pid_space: str
    pid: int
    started: str


def this_process() -> Process:
    """The process that runs this."""
    pid = os.getpid()
    return Process(
        host=socket.gethostname(),
        machine=machine_id(),
        boot=boot_id(),
        pid_space=_pid_space(),
        pid=pid,
        started=_began(pid) or "0",
    )


def is_of_this_machine(process: Process) -> bool:
    """Whether a process is or was one of this machine; containers of one machine have host names of their own."""
    own = this_process()
    if process.boot == own.boot != "0":
        return True
    is_other = process.machine != own.machine and "" not in (process.machine, own.machine)
    return process.host == own.host and not is_other


def has_ended(process: Process) -> bool:
    """Whether a process is known to be gone; of other machines, and of other containers, nothing is known."""
    own = this_process()
    if not is_of_this_machine(process):
        return False
    if process.boot != own.boot:
        return True
    return process.pid_space == own.pid_space and not _is_alive(process.pid, process.started)


def work_name(what: str) -> str:
    """A name that no other writer uses, and that says whose it is."""
    own = this_process()
    owner = f"{_in_a_name(own.host)}~{own.boot}~{own.pid_space}~{own.pid}~{own.started}"
    return f"{what}~{owner}~{secrets.token_hex(4)}"


def is_abandoned(name: str) -> bool:
    """Whether a work name belongs to a process of this machine that is gone; other machines' are left alone."""
    try:
        _, host, boot, space, pid, started, _ = name.split("~")
        process = int(pid)
    except ValueError:
        return False
    own = this_process()
    if host != _in_a_name(own.host):
        return False
    return has_ended(Process(host=own.host, boot=boot, pid_space=space, pid=process, started=started))


def _in_a_name(host: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in host)[:40]


def is_own(name: str) -> bool:
    """Whether a work name was made by this process."""
    return name.split("~")[1:6] == work_name("").split("~")[1:6]


def boot_id() -> str:
    """What changes when this machine starts anew, so that an old process number is not taken for a living one."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    except OSError:
        return "0"


def machine_id() -> str:
    """A digest of /etc/machine-id, which should not be published; empty if the machine has no such id."""
    try:
        text = _MACHINE_ID.read_bytes().strip()
    except OSError:
        return ""
    return hashlib.sha256(b"kdpipe " + text).hexdigest()[:16] if _IS_ID.fullmatch(text) else ""


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
