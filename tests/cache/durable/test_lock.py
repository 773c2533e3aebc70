"""One writer at a time: races of real processes, locks of dead, other and unknown holders, places that cannot lock."""

import errno
import json
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from kdpipe.cache.durable import lock
from kdpipe.cache.durable import work_names as workers
from kdpipe.cache.durable.lock import LOCK, check_free, locked
from kdpipe.schemas.errors import ConfigError, LockHeld, WriteError
from support.children import Child, in_child, mount_memory, mounted, remount
from support.gates import Gate

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads what /proc knows of a process")

ROUNDS = 50
N_TURNS = 100


def silent(_: str) -> None:
    """A listener that ignores every line."""


def hold(folder: Path, come: Callable[[], None], stay: Callable[[], None]) -> str:
    """Try to take the lock when all have come, and keep it until all have tried."""
    come()
    messages: list[str] = []
    try:
        with locked(folder, messages.append):
            stay()
            return "won" + "".join(f"; {line}" for line in messages)
    except LockHeld as error:
        stay()
        return f"refused: {error.message}"


def race(folder: Path, n_starters: int = 2) -> list[str]:
    """What processes say that try to take one lock at the same moment."""
    start, end = Gate(n_starters), Gate(n_starters)
    children = [Child(lambda: hold(folder, start.pass_through, end.pass_through)) for _ in range(n_starters)]
    for gate in (start, end):
        gate.wait()
        gate.open()
    messages = [child.wait().output for child in children]
    for gate in (start, end):
        gate.close()
    pids = {child.pid for child in children}
    for line in messages:
        if not line.startswith("won"):
            assert any(line.startswith(f"refused: {folder} is in use by process {pid} on ") for pid in pids), line
    return messages


def leave_stale_lock(folder: Path, **changes: Any) -> dict[str, Any]:
    """A lock that a killed process left, with other values in its line."""

    def die() -> None:
        with locked(folder, silent):
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(die).code == -signal.SIGKILL
    line = json.loads((folder / LOCK).read_text()) | changes
    (folder / LOCK).write_text(json.dumps(line, sort_keys=True, separators=(",", ":")) + "\n")
    return line


@pytest.fixture(params=["locks", "no locks"])
def file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A file system with locks, or one that answers as those without do."""
    if request.param == "no locks":

        def refuse(*_: Any) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(lock.fcntl, "flock", refuse)
    yield request.param


@pytest.mark.parametrize("n_races", [ROUNDS // 5, pytest.param(ROUNDS, marks=pytest.mark.slow)])
def test_of_two_starters_exactly_one_wins(tmp_path: Path, n_races: int) -> None:
    for number in range(n_races):
        messages = race(tmp_path / str(number))
        assert sorted(line[:3] for line in messages) == ["ref", "won"]
        assert not (tmp_path / str(number) / LOCK).exists()


@pytest.mark.slow
def test_of_many_starters_that_find_a_stale_lock_exactly_one_takes_it_over(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for _ in range(ROUNDS // 2):
        pid = leave_stale_lock(folder)["pid"]
        messages = race(folder, 3)
        assert sorted(line[:3] for line in messages) == ["ref", "ref", "won"]
        assert f"won; took over the lock of process {pid}, which has ended" in messages
        assert not (folder / LOCK).exists()


def test_a_lock_that_changes_hands_is_never_held_by_two(tmp_path: Path) -> None:
    def work() -> str:
        n_won = 0
        for _ in range(N_TURNS):
            with suppress(LockHeld), locked(tmp_path, silent):
                os.close(os.open(tmp_path / "inside", os.O_CREAT | os.O_EXCL))
                os.unlink(tmp_path / "inside")
                n_won += 1
        return str(n_won)

    children = [Child(work) for _ in range(3)]
    ended = [child.wait() for child in children]
    assert [each.code for each in ended] == [0, 0, 0], ended
    assert sum(int(each.output) for each in ended) > 0
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_its_holder_removes_before_it_is_locked_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder, real = ExitStack(), lock._lock

    def late(descriptor: int) -> None:
        holder.close()
        real(descriptor)

    holder.enter_context(locked(tmp_path, silent))
    monkeypatch.setattr(lock, "_lock", late)
    with locked(tmp_path, silent):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
        with pytest.raises(LockHeld), locked(tmp_path, silent):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_holder_is_named_with_process_host_and_time(tmp_path: Path) -> None:
    with locked(tmp_path, silent):
        since = json.loads((tmp_path / LOCK).read_text())["since"]
        with pytest.raises(LockHeld) as caught, locked(tmp_path, silent):
            pass
    assert caught.value.exit_code == 2
    for reported in (str(tmp_path), str(os.getpid()), socket.gethostname(), since):
        assert reported in caught.value.message
    assert "stop it" in str(caught.value.hint)


@pytest.mark.parametrize("end", [None, RuntimeError, KeyboardInterrupt])
def test_a_lock_ends_with_its_block(tmp_path: Path, end: type[BaseException] | None) -> None:
    try:
        with locked(tmp_path / "a" / "run", silent):
            if end is not None:
                raise end
    except (RuntimeError, KeyboardInterrupt):
        assert end is not None
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_there_or_was_filled_stays(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with locked(tmp_path / "mine", silent):
        pass
    with locked(tmp_path / "new" / "run", silent):
        (tmp_path / "new" / "run" / "file").touch()
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "mine",
        "new",
        "new/run",
        "new/run/file",
    ]


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path, file_system: str) -> None:
    pid = leave_stale_lock(tmp_path)["pid"]
    messages: list[str] = []
    with locked(tmp_path, messages.append):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert messages[0] == f"took over the lock of process {pid}, which has ended"


def test_a_process_number_that_was_given_out_again_is_not_the_holder(tmp_path: Path, file_system: str) -> None:
    leave_stale_lock(tmp_path, pid=os.getpid(), started="1")
    with locked(tmp_path, silent):
        assert json.loads((tmp_path / LOCK).read_text())["started"] == workers.this_process().started


def test_a_lock_from_before_the_machine_was_restarted_is_taken_over(tmp_path: Path, file_system: str) -> None:
    leave_stale_lock(tmp_path, pid=os.getpid(), started=workers.this_process().started, boot="another")
    with locked(tmp_path, silent):
        pass


def test_the_lock_of_another_machine_is_never_taken_over(tmp_path: Path, file_system: str) -> None:
    leave_stale_lock(tmp_path, host="node-7.example.org", boot="another")
    before = (tmp_path / LOCK).read_bytes()
    for _ in range(2):
        with pytest.raises(LockHeld, match=r"on node-7\.example\.org since") as caught, locked(tmp_path, silent):
            pass
        assert f"delete {tmp_path / LOCK}" in str(caught.value.hint)
    assert (tmp_path / LOCK).read_bytes() == before


@pytest.fixture
def machine_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], str]:
    """Give this machine the id that a file has, or none."""
    path = tmp_path / "machine-id"
    monkeypatch.setattr(workers, "_MACHINE_ID", path)

    def choose(text: str | None) -> str:
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text)
        return workers.machine_id()

    return choose


ONE_ID, OTHER_ID = "0" * 31 + "1\n", "0" * 31 + "2\n"


def test_the_lock_of_a_machine_of_the_same_host_name_is_not_taken_over(
    tmp_path: Path, file_system: str, machine_ids: Callable[[str | None], str]
) -> None:
    run = tmp_path / "run"
    other = machine_ids(OTHER_ID)
    leave_stale_lock(run, boot="another")
    own = machine_ids(ONE_ID)
    assert other != own and {len(other), len(own)} == {16} and OTHER_ID.strip() not in (run / LOCK).read_text()
    before = (run / LOCK).read_bytes()
    with pytest.raises(LockHeld, match=f"on {socket.gethostname()} since") as caught, locked(run, silent):
        pass
    assert f"delete {run / LOCK}" in str(caught.value.hint)
    assert (run / LOCK).read_bytes() == before
    machine_ids(OTHER_ID)
    with locked(run, silent):
        assert json.loads((run / LOCK).read_text())["machine"] == other


@pytest.mark.parametrize(("there", "here"), [(None, ONE_ID), (ONE_ID, None), (None, None), ("uninitialized\n", ONE_ID)])
def test_machines_without_an_id_are_distinguished_by_host_name(
    tmp_path: Path, there: str | None, here: str | None, machine_ids: Callable[[str | None], str]
) -> None:
    for boot in ("another", workers.boot_id()):
        machine_ids(there)
        leave_stale_lock(tmp_path / "run", boot=boot)
        machine_ids(here)
        with locked(tmp_path / "run", silent):
            pass


def test_a_container_with_another_machine_id_is_of_this_machine(
    tmp_path: Path, machine_ids: Callable[[str | None], str]
) -> None:
    machine_ids(OTHER_ID)
    leave_stale_lock(tmp_path / "run")
    machine_ids(ONE_ID)
    with locked(tmp_path / "run", silent):
        pass


def test_another_container_of_this_machine_is_judged_by_the_lock_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_stale_lock(tmp_path, host="9f86d081884c", pid_space="1")
    before = (tmp_path / LOCK).read_bytes()
    with locked(tmp_path, silent):
        pass
    (tmp_path / LOCK).write_bytes(before)
    monkeypatch.setattr(lock, "_NO_LOCKS", {errno.EAGAIN})
    with open(tmp_path / LOCK) as other:
        lock.fcntl.flock(other, lock.fcntl.LOCK_EX)
        with pytest.raises(LockHeld) as caught, locked(tmp_path, silent):
            pass
    assert f"delete {tmp_path / LOCK}" in str(caught.value.hint)


def test_a_file_system_without_locks_is_reported_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    messages: list[str] = []
    with locked(tmp_path, messages.append):
        assert len(messages) == 1 and str(tmp_path) in messages[0] and "has no locks" in messages[0]
        with pytest.raises(LockHeld, match=f"process {os.getpid()}"), locked(tmp_path, silent):
            pass
    assert list(tmp_path.iterdir()) == []


def test_an_empty_lock_file_is_taken_and_one_that_cannot_be_read_is_not(tmp_path: Path) -> None:
    (tmp_path / LOCK).touch()
    with locked(tmp_path, silent):
        pass
    (tmp_path / LOCK).write_text("mine\n")
    reported = r"cannot be read: .*kdpipe\.lock is not strict JSON"
    with pytest.raises(LockHeld, match=reported) as caught, locked(tmp_path, silent):
        pass
    assert f"delete {tmp_path / LOCK}" in str(caught.value.hint)
    assert (tmp_path / LOCK).read_text() == "mine\n"


def test_a_lock_that_was_deleted_by_hand_is_not_given_back_twice(tmp_path: Path) -> None:
    with locked(tmp_path, silent):
        (tmp_path / LOCK).unlink()
        gate = Gate(1)
        other = Child(lambda: hold(tmp_path, lambda: None, gate.pass_through))
        gate.wait()
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == other.pid
    gate.open()
    assert other.wait().output == "won"
    gate.close()


def test_a_child_of_a_fork_neither_holds_nor_ends_the_lock_of_its_parent(tmp_path: Path) -> None:
    alive, gate = Gate(1), Gate(1)

    def parent() -> None:
        with locked(tmp_path, silent):
            if not os.fork():
                alive.pass_through()
                os._exit(0)
            gate.pass_through()
            os.kill(os.getpid(), signal.SIGKILL)

    child = Child(parent)
    gate.wait()
    with pytest.raises(LockHeld), locked(tmp_path, silent):
        pass
    gate.open()
    os.waitpid(child.pid, 0)
    alive.wait()
    messages: list[str] = []
    with locked(tmp_path, messages.append):
        pass
    assert len(messages) == 1
    alive.open()


def test_an_unnamed_holder_is_still_a_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_LINE_TRIES", 2)
    leave_stale_lock(tmp_path)
    with open(tmp_path / LOCK) as other:
        lock.fcntl.flock(other, lock.fcntl.LOCK_EX)
        with pytest.raises(LockHeld, match="in use by another process"), locked(tmp_path, silent):
            pass


def test_a_lock_beside_a_folder_leaves_the_folder_to_its_maker(tmp_path: Path) -> None:
    with locked(tmp_path / "export", silent, beside=True):
        assert [path.name for path in tmp_path.iterdir()] == [".export.lock"]
        with pytest.raises(LockHeld, match="export is in use"), locked(tmp_path / "export", silent, beside=True):
            pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "messages"),
    [
        ("/proc/x", r"not writable: /proc/x \("),
        ("file", "not a folder: .*/file"),
        ("file/below/run", "not a folder: .*/file"),
        ("loop/run", r"(not writable|not a folder): "),
        ("x" * 300, r"not writable: .*xxx \(File name too long\)"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path, name: str, messages: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ConfigError, match=messages) as caught, locked(tmp_path / name, silent):
        pass
    assert caught.value.exit_code == 2 and "choose another folder" in str(caught.value.hint)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop"]


@pytest.mark.parametrize("kind", ["link", "dangling link", "loop", "pipe", "socket", "directory", "device"])
def test_a_lock_path_that_is_not_a_regular_file_is_refused(tmp_path: Path, kind: str) -> None:
    run, target = tmp_path / "run", tmp_path / "thesis.tex"
    run.mkdir()
    for path in (run / LOCK, tmp_path / ".run.lock"):
        match kind:
            case "link":
                target.write_bytes(b"")
                path.symlink_to(target)
            case "dangling link":
                path.symlink_to(target)
            case "loop":
                path.symlink_to(path)
            case "pipe":
                os.mkfifo(path)
            case "socket":
                with socket.socket(socket.AF_UNIX) as listener:
                    listener.bind(os.path.relpath(path))
            case "directory":
                path.mkdir()
            case _:
                path.symlink_to("/dev/zero")
    before = {path: os.lstat(path) for path in tmp_path.rglob("*")}
    for path, beside in ((run / LOCK, False), (tmp_path / ".run.lock", True)):
        refusal = pytest.raises(ConfigError, match=f"^{path} is not a regular file")
        with refusal as caught, locked(run, silent, beside=beside):
            pass
        assert caught.value.exit_code == 2 and "remove it" in str(caught.value.hint)
    with pytest.raises(ConfigError, match="is not a regular file"):
        check_free(run)
    assert {path: os.lstat(path).st_ino for path in tmp_path.rglob("*")} == {
        path: status.st_ino for path, status in before.items()
    }
    assert not target.exists() or target.read_bytes() == b""


def test_a_lock_that_becomes_a_link_while_it_is_opened_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, real = tmp_path / "thesis.tex", os.open
    target.touch()

    def late(path: Any, *rest: Any) -> int:
        descriptor = real(path, *rest)
        if path == tmp_path / LOCK:
            os.unlink(path)
            os.symlink(target, path)
        return descriptor

    monkeypatch.setattr(lock.os, "open", late)
    n_open = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigError, match="is not a regular file"), locked(tmp_path, silent):
        pass
    assert target.read_bytes() == b"" and len(os.listdir("/proc/self/fd")) == n_open


def test_no_lock_is_put_beside_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    for folder in (Path("/"), Path("."), Path("/tmp/..")):
        with pytest.raises(ConfigError, match="root of a file system") as caught, locked(folder, silent, beside=True):
            pass
        assert caught.value.exit_code == 2


def test_a_folder_of_somebody_else_is_refused() -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        os.chmod(folder, 0o555)

        def work() -> None:
            if not os.getuid():
                os.setgid(65534)
                os.setuid(65534)
            with locked(folder / "run", silent):
                pass

        ended = in_child(work)
        os.chmod(folder, 0o755)
        assert ended.code == 2, ended.output
        assert f"not writable: {folder / 'run'} (Permission denied)" in ended.output
        assert list(folder.iterdir()) == []


def test_a_read_only_file_system_is_refused_and_a_full_one_is_reported(tmp_path: Path) -> None:
    def work() -> str:
        mount_memory(tmp_path / "disk", 1 << 16)
        folder = tmp_path / "disk" / "run"
        (tmp_path / "disk" / "filling").write_bytes(b"x" * (1 << 16))
        with pytest.raises(WriteError) as full, locked(folder, silent):
            pass
        assert not folder.exists()
        remount(tmp_path / "disk", 1 << 16, read_only=True)
        with pytest.raises(ConfigError, match="Read-only file system"), locked(folder, silent):
            pass
        return f"{full.value.exit_code} {full.value.hint}"

    ended = mounted(work)
    assert ended.output.startswith("1 free some space"), ended.output


def test_a_folder_that_is_always_removed_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock._LockFile, "has_its_name", False)
    with pytest.raises(ConfigError, match="not writable"), locked(tmp_path, silent):
        pass
