"""Unique names for unfinished work in tmp/ that contain their process, and whether that process is still running.

In: what is being built. Out: a unique name; for such a name, whether its owner has ended. This is cleanup, not locking:
two writers of the same part never harm each other, and names that cannot be judged are kept.
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
# machine-id(5): the file may also be empty or contain "uninitialized".
_IS_ID: Final = re.compile(rb"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process and its machine; `started` is in ticks since the machine booted, "0" if unknown.

    `machine` is empty if the machine has no id, and in work names, which do not contain it.
    """

    host: str
    machine: str = ""
    boot: str
    pid_space: str
    pid: int
    started: str


def this_process() -> Process:
    """The current process."""
    pid = os.getpid()
    return Process(
        host=socket.gethostname(),
        machine=machine_id(),
        boot=boot_id(),
        pid_space=_pid_space(),
        pid=pid,
        started=_start_ticks(pid) or "0",
    )


def is_of_this_machine(process: Process) -> bool:
    """Whether a process runs or ran on this machine; its containers have their own host names."""
    own = this_process()
    if process.boot == own.boot != "0":
        return True
    is_other = process.machine != own.machine and "" not in (process.machine, own.machine)
    return process.host == own.host and not is_other


def has_ended(process: Process) -> bool:
    """Whether a process is known to have ended; unknown for other machines and containers."""
    own = this_process()
    if not is_of_this_machine(process):
        return False
    if process.boot != own.boot:
        return True
    return process.pid_space == own.pid_space and not _is_running(process.pid, process.started)


def work_name(what: str) -> str:
    """A unique name that contains its process."""
    own = this_process()
    owner = f"{_name_part(own.host)}~{own.boot}~{own.pid_space}~{own.pid}~{own.started}"
    return f"{what}~{owner}~{secrets.token_hex(4)}"


def is_abandoned(name: str) -> bool:
    """Whether a work name belongs to an ended process of this machine."""
    try:
        _, host, boot, space, pid, started, _ = name.split("~")
        process = int(pid)
    except ValueError:
        return False
    own = this_process()
    if host != _name_part(own.host):
        return False
    return has_ended(Process(host=own.host, boot=boot, pid_space=space, pid=process, started=started))


def _name_part(host: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in host)[:40]


def is_own(name: str) -> bool:
    """Whether a work name belongs to this process."""
    return name.split("~")[1:6] == work_name("").split("~")[1:6]


def boot_id() -> str:
    """An id of the current boot, so that an old process number is not mistaken for a running process."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    except OSError:
        return "0"


def machine_id() -> str:
    """A digest of /etc/machine-id, which should not be published; empty if the machine has no id."""
    try:
        text = _MACHINE_ID.read_bytes().strip()
    except OSError:
        return ""
    return hashlib.sha256(b"kdpipe " + text).hexdigest()[:16] if _IS_ID.fullmatch(text) else ""


def _pid_space() -> str:
    """The pid namespace: containers of one machine have their own process numbers."""
    try:
        return str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        return "0"


def _is_running(process: int, began: str) -> bool:
    """Whether a process is running and has this start time: process numbers are reused."""
    if os.name == "nt":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return _start_ticks(process) in (began, None) or began == "0"


def _start_ticks(process: int) -> str | None:
    """The start of a process in ticks; "" for a zombie, None if unknown."""
    try:
        state, *numbers = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return "" if state in "ZX" else numbers[18]
