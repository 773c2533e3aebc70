"""Generated programs that try what they may not: each attempt fails in a sandbox, and no attempt forges a pass."""

import json
import os
import socket
import sys
import threading
from pathlib import Path

import pytest

from kdpipe.pipeline.evaluation import sandbox
from kdpipe.pipeline.evaluation.sandbox import ProgramLimits, ProgramOutcome, ProgramTest, check_sandbox, run_test
from kdpipe.pipeline.evaluation.sandbox_worker import decode, encode
from kdpipe.schemas.errors import ConfigError

# Startup takes processor time too.
SHORT = ProgramLimits(cpu_seconds=2, wall_seconds=60.0, memory_bytes=300 << 20, file_bytes=1 << 20)
ADDS = ProgramTest(
    program="def add(a, b):\n    return a + b\n",
    test="def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate([1], ()) == [1]\n",
    function="add",
)


@pytest.fixture(scope="module", autouse=True)
def sandboxes() -> None:
    try:
        check_sandbox()
    except ConfigError as error:
        pytest.skip(error.message)


def outcome(
    program: str, expected: str = "True", *, limits: ProgramLimits = SHORT, isolated: bool = True
) -> ProgramOutcome:
    """Run a program whose function `f` must return a value."""
    test = f"def check(candidate):\n    assert candidate() == {expected}\n"
    return run_test(ProgramTest(program=program, test=test, function="f"), limits, isolated=isolated)


def attempt(lines: str) -> str:
    """A program whose function is true if lines raise an OSError or RuntimeError."""
    body = "".join(f"        {line}\n" for line in lines.splitlines())
    return (
        f"import os, socket, sys\ndef f():\n    try:\n{body}    except (OSError, RuntimeError):\n        return True\n"
    )


@pytest.mark.parametrize("isolated", [True, False])
def test_a_program_passes_with_the_expected_values_only(isolated: bool) -> None:
    right = ADDS.program + "print('noise')\n"
    test = ADDS.test.replace("[1], ()) == [1]", "2, 3) == 5")
    for program, passed in ((right, True), (right.replace("+", "-"), False), ("def add(a, b)", False), ("", False)):
        given = ProgramTest(program=program, test=test, function="add")
        result = run_test(given, SHORT, isolated=isolated)
        assert (result.passed, not result.why) == (passed, passed), (program, result)


def test_a_test_may_call_the_function_by_its_name() -> None:
    stub = ADDS.program.replace("return a + b", "pass")
    test = f"{stub}\ndef check(candidate):\n    assert add(1, 2) == candidate(2, 1) == 3\n"
    assert run_test(ProgramTest(program=ADDS.program, test=test, function="add"), SHORT).passed


def test_an_exception_of_a_program_fails_its_test() -> None:
    assert not run_test(ADDS, SHORT).passed
    assert "ValueError" in outcome("def f(): raise ValueError").why


def test_a_program_cannot_connect() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        port, name = server.getsockname()[1], f"\0kdpipe-{os.getpid()}"
        local.bind(name)
        local.listen()
        assert outcome(attempt(f"socket.create_connection(('127.0.0.1', {port}), timeout=5)")).passed
        assert outcome(attempt(f"socket.socket(socket.AF_UNIX).connect({name!r})")).passed
        assert not outcome(attempt(f"socket.create_connection(('127.0.0.1', {port}))"), isolated=False).passed


def test_a_program_can_neither_write_nor_read_outside(tmp_path: Path) -> None:
    secret, library = tmp_path / "secret", Path(json.__file__).parent
    secret.write_text("hidden")
    for path in (tmp_path / "new", "/new", "/usr/new", library / "new.py"):
        assert outcome(attempt(f"open({str(path)!r}, 'w')")).passed, path
    assert outcome(attempt(f"open({str(secret)!r})")).passed
    assert outcome(attempt(f"os.chmod({str(library)!r}, 0o777)")).passed
    assert outcome("import os\ndef f(): return os.getuid() != 0 and not os.path.exists('/proc/self')").passed
    assert list(tmp_path.iterdir()) == [secret]


def test_a_program_can_write_a_little_to_its_own_folder() -> None:
    small = "open('a', 'w').write('x' * 1000)"
    assert outcome(f"def f():\n    {small}\n    return open('a').read() == 'x' * 1000\n").passed
    assert outcome(attempt("open('a', 'w').write('x' * 2_000_000)")).passed
    many = "for n in range(10):\n    open(str(n), 'w').write('x' * 500_000)"
    assert outcome(attempt(many)).passed


def test_a_program_cannot_start_processes_or_threads() -> None:
    assert outcome(attempt("os.fork()")).passed
    assert outcome(attempt("os.posix_spawn(sys.executable, [sys.executable], {})")).passed
    assert outcome(attempt("import threading\nthreading.Thread(target=print).start()")).passed


def test_a_program_cannot_regain_rights() -> None:
    call = "import ctypes\nc = ctypes.CDLL(None, use_errno=True)\nif c.{}: raise OSError"
    for what in ("mount(None, b'/', None, 32 | 4096, None)", "chroot(b'/kdpipe')", "sethostname(b'a', 1)", "setuid(0)"):
        assert outcome(attempt(call.format(what))).passed, what


def test_a_program_that_fills_memory_fails() -> None:
    result = outcome("def f():\n    x = bytearray(10 ** 9)\n    return True\n")
    assert not result.passed and "MemoryError" in result.why


@pytest.mark.slow
def test_a_program_that_never_ends_is_ended() -> None:
    for program in ("def f():\n    while True: pass\n", "while True: pass\n"):
        assert not outcome(program).passed
    waiting = "import time\ndef f():\n    time.sleep(1000)\n"
    assert outcome(waiting, limits=ProgramLimits(wall_seconds=1.0)).why == "out of time"


@pytest.mark.slow
def test_endless_output_is_ignored() -> None:
    assert not outcome("import sys\ndef f():\n    while True: print('x' * 9999); sys.stderr.write('y' * 9999)\n").passed


FORGERIES = {
    "exits with 0": "import os\nos._exit(0)\n",
    "exits in the call": "import sys\ndef f(): sys.exit(0)\n",
    "writes to every descriptor": """
import os
def f():
    for number in range(256):
        try:
            os.write(number, b"passed")
        except OSError:
            pass
    os._exit(0)
""",
    "returns an object that is equal to everything": """
class Same:
    def __eq__(self, other): return True
def f(): return Same()
""",
    "returns a list of its own class": """
class Same(list):
    def __eq__(self, other): return True
def f(): return Same()
""",
    "replaces the encoding": """
import sys
def f():
    sys.modules["__main__"].encode = lambda value: ["list"]
    sys.modules["__main__"].PASSED = ""
    return 1
""",
    "reads its test": """
import gc
def f():
    return next(int(text.split("== ")[1]) for text in gc.get_objects() if isinstance(text, str) and "assert" in text)
""",
}


@pytest.mark.parametrize("how", FORGERIES)
def test_a_program_cannot_forge_a_pass(how: str) -> None:
    for isolated in (True, False):
        assert not outcome(FORGERIES[how], "123456789", isolated=isolated).passed


def test_nothing_is_left_and_no_descriptor_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for isolated in (True, False):
        assert outcome("def f(): return open('a', 'w').write('b') == 1", isolated=isolated).passed
        assert not outcome("def f(): pass", isolated=isolated).passed
    assert list(tmp_path.iterdir()) == []
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == (before, threads)


@pytest.mark.parametrize(
    "value", [None, True, -3, 1e300, float("inf"), "a\ud800", b"\0", 1j, [1, (2, {3}), {"a": [frozenset({4})]}], ()]
)
def test_plain_data_is_passed_exactly(value: object) -> None:
    copied = decode(json.loads(json.dumps(encode(value))))
    assert copied == value and type(copied) is type(value)


def test_a_system_without_sandboxes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "darwin")
        with pytest.raises(ConfigError) as caught:
            check_sandbox()
        assert "darwin" in caught.value.message and "--unsafe-no-sandbox" in str(caught.value.hint)


def test_refused_namespaces_are_stated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = sandbox.CHILD.read_text(encoding="utf-8")
    refused = (
        'def system(name, *given):\n    raise PermissionError(1, f"{name}: Operation not permitted")\n\n\ndef mount('
    )
    (tmp_path / "child.py").write_text(source.replace("def mount(", refused), encoding="utf-8")
    monkeypatch.setattr(sandbox, "CHILD", tmp_path / "child.py")
    with pytest.raises(ConfigError, match=r"unshare.*not permitted") as caught:
        check_sandbox()
    assert caught.value.exit_code == 2 and "--unsafe-no-sandbox" in str(caught.value.hint)
