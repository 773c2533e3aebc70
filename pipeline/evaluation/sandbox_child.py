"""The process around a generated program: namespaces without network, and limits on time, memory, files and processes.

In: a JSON line on stdin with files, command and limits. Out: nothing; the command in it uses inherited descriptors. It
is killed when stdin is closed. `sandbox.py` runs this file by its path, without site-packages: it imports the standard
library only.
"""

import ctypes
import errno
import json
import os
import platform
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

# linux/sched.h
NEW_MOUNTS, NEW_HOSTNAME, NEW_IPC = 0x00020000, 0x04000000, 0x08000000
NEW_USERS, NEW_PIDS, NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000
# linux/mount.h; statvfs has the same bits but for RELATIME.
READ_ONLY, NO_SUID, NO_DEVICES, NO_EXEC, REMOUNT = 1, 2, 4, 8, 32
NO_ATIME, NO_DIR_ATIME, BIND, RECURSIVE, PRIVATE, RELATIME = 1 << 10, 1 << 11, 1 << 12, 1 << 14, 1 << 18, 1 << 21
STATVFS_RELATIME = 1 << 12
DETACH = 2
NO_MORE = "no more namespaces are allowed (user.max_user_namespaces)"
# linux/prctl.h
END_WITH_PARENT, NO_NEW_PRIVILEGES = 1, 38
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
# Both ids of the program: root has no limit on processes.
UNPRIVILEGED = 65534
# Python may be installed below /tmp.
WORK = "/kdpipe"
SYSTEM_LIBRARIES = ("/usr", "/lib", "/lib64", "/lib32")


def system(name: str, *arguments: Any) -> None:
    """Call a function of the C library, which sets errno."""
    library = ctypes.CDLL(None, use_errno=True)
    coded = [item.encode() if isinstance(item, str) else item for item in arguments]
    if getattr(library, name)(*coded) == -1:
        number = ctypes.get_errno()
        is_limit = name == "unshare" and number == errno.ENOSPC
        raise OSError(number, f"{name}: {NO_MORE if is_limit else os.strerror(number)}")


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    system("mount", source, target, kind, ctypes.c_ulong(flags), options)


def enter_namespaces() -> None:
    """Namespaces without network or other processes' memory; `map_users` and a fork come after it."""
    system("unshare", NEW_MOUNTS | NEW_HOSTNAME | NEW_IPC | NEW_NETWORK)


def map_users(pid: int | str, *, by_root: bool) -> None:
    """Map the ids of a process in its new user namespace: its own as an unprivileged one, or root and that one."""
    folder = Path(f"/proc/{pid}")
    if not by_root:
        (folder / "setgroups").write_text("deny")
    for name, own in (("uid_map", os.geteuid()), ("gid_map", os.getegid())):
        try:
            (folder / name).write_text(
                f"0 0 1\n{UNPRIVILEGED} {UNPRIVILEGED} 1\n" if by_root else f"{UNPRIVILEGED} {own} 1\n"
            )
        except OSError as error:
            raise OSError(error.errno, f"{name}: {error.strerror}") from None


def enter_root(root: str, files: dict[str, str], work_bytes: int) -> None:
    """Make a folder the root: Python and system libraries, read-only, some files, and a small folder to write to."""
    mount(None, "/", None, RECURSIVE | PRIVATE)
    mount("tmpfs", root, "tmpfs", NO_SUID | NO_DEVICES, "size=4m,mode=755")
    bound: list[str] = []
    executable = os.path.dirname(os.path.realpath(sys.executable))
    for path in (*SYSTEM_LIBRARIES, sys.base_prefix, sys.base_exec_prefix, executable):
        inside = root + path
        if os.path.islink(path):
            os.symlink(os.readlink(path), inside)
        elif os.path.isdir(path) and not any(f"{path}/".startswith(f"{other}/") for other in bound):
            os.makedirs(inside)
            mount(path, inside, None, BIND | RECURSIVE)
            bound.append(path)
    for name, text in files.items():
        Path(root, name).write_text(text, encoding="utf-8")
    os.mkdir(root + WORK)
    for point in sorted(_mount_points(root)):
        status = os.statvfs(point).f_flag
        kept = status & (NO_SUID | NO_DEVICES | NO_EXEC | NO_ATIME | NO_DIR_ATIME)
        kept |= RELATIME if status & STATVFS_RELATIME else 0
        mount(None, point, None, REMOUNT | BIND | READ_ONLY | NO_SUID | NO_DEVICES | kept)
    mount("tmpfs", root + WORK, "tmpfs", NO_SUID | NO_DEVICES, f"size={work_bytes},nr_inodes=1000,mode=1777")
    os.chdir(root)
    # The old root is mounted over the new one, and removed.
    system("syscall", PIVOT_ROOT[platform.machine()], ".", ".")
    system("umount2", ".", DETACH)
    os.chdir(WORK)


def _mount_points(root: str) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    points = [re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), line.split()[4]) for line in lines]
    return [point for point in points if f"{point}/".startswith(f"{root}/")]


def limit(limits: dict[str, int], *, isolated: bool) -> None:
    """Set the limits of this process and its children, of which a sandbox has none."""
    values = {
        resource.RLIMIT_CPU: limits["cpu_seconds"],
        resource.RLIMIT_AS: limits["memory_bytes"],
        resource.RLIMIT_FSIZE: limits["file_bytes"],
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
    }
    if sys.platform == "darwin":
        del values[resource.RLIMIT_AS]
    if isolated:
        values[resource.RLIMIT_NPROC] = 1
    for kind, value in values.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def become_program(spec: dict[str, Any], folder: str, *, by_root: bool) -> None:
    """Replace this process by the command of a spec; it does not return."""
    isolated, null = spec["isolated"], os.open(os.devnull, os.O_RDWR)
    python = os.path.realpath(sys.executable)
    if isolated:
        enter_namespaces()
        enter_root(folder, spec["files"], spec["limits"]["file_bytes"])
        if by_root:
            os.setgroups([])
            os.setresgid(UNPRIVILEGED, UNPRIVILEGED, UNPRIVILEGED)
            os.setresuid(UNPRIVILEGED, UNPRIVILEGED, UNPRIVILEGED)
        system("prctl", NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        system("prctl", END_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    else:
        for name, text in spec["files"].items():
            Path(folder, name).write_text(text, encoding="utf-8")
        os.chdir(folder)
    limit(spec["limits"], isolated=isolated)
    place = "/" if isolated else folder
    command = [python, "-P", "-s", "-S", "-B", os.path.join(place, spec["command"][0])]
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    environment = {"HOME": os.getcwd(), "TMPDIR": os.getcwd(), "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0", **kept}
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.execve(python, [*command, place, *spec["command"][1:]], environment)


def _described(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    spec = json.loads(sys.stdin.buffer.readline())
    folder = os.path.realpath(tempfile.mkdtemp(prefix="kdpipe-program-"))
    by_root = spec["isolated"] and os.geteuid() == 0
    try:
        if spec["isolated"] and not by_root:
            system("unshare", NEW_USERS | NEW_PIDS)
            map_users("self", by_root=False)
        mapped_read, mapped_write = os.pipe()
        ended_read, ended_write = os.pipe()
        if by_root:
            system("unshare", NEW_PIDS)
        pid = os.fork()
        if pid == 0:
            try:
                os.set_inheritable(ended_write, True)
                if by_root:
                    # Root maps its ids from outside: without an unprivileged id, processes would have no limit.
                    system("unshare", NEW_USERS)
                    os.write(ended_write, b"u")
                    os.close(mapped_write)
                    if not os.read(mapped_read, 1):
                        raise OSError("user ids could not be mapped")
                become_program(spec, folder, by_root=by_root)
            except BaseException as error:
                os.write(2, _described(error).encode())
            os._exit(1)
        os.close(ended_write)
        os.close(mapped_read)
        for descriptor in spec["descriptors"]:
            os.close(descriptor)
        try:
            if by_root and os.read(ended_read, 1):
                map_users(pid, by_root=True)
                os.write(mapped_write, b"m")
            os.close(mapped_write)
            select.select([sys.stdin, ended_read], [], [])
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    except OSError as error:
        sys.exit(_described(error))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
