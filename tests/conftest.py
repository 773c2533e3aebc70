"""What all tests share: a folder of their own for what a machine remembers of caches, which is gone afterwards.

The disk is not waited for. Signals are as in a terminal, whatever the shell that runs the tests ignores: children would
inherit that.
"""

import math
import os
import signal
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

DEFAULTS = {"SIGINT": signal.default_int_handler, "SIGTERM": signal.SIG_DFL, "SIGHUP": signal.SIG_DFL}
for _name, _handler in DEFAULTS.items():
    if hasattr(signal, _name) and signal.getsignal(getattr(signal, _name)) is signal.SIG_IGN:
        signal.signal(getattr(signal, _name), _handler)


@pytest.fixture(scope="session", autouse=True)
def own_memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is written into or read from the user's home; children inherit that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("remembered")))
        yield


@pytest.fixture(scope="session", autouse=True)
def hurried() -> Iterator[None]:
    """No syncs: a process that is killed loses nothing by that, and power cuts are simulated by `support.disk`.

    Programs that tests start by name sync as ever, which strace watches.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def no_timed_lines() -> Iterator[None]:
    """Commands that tests run in this process print no progress lines, however slow the machine is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdpipe.cli.progress.SECONDS_BETWEEN_LINES", math.inf)
        yield


@pytest.fixture(autouse=True)
def same_signals() -> Iterator[None]:
    """A test that leaves a handler behind is the one that fails, not one of those that send the signal later."""
    ours = [getattr(signal, name) for name in (*DEFAULTS, "SIGURG") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in ours}
    yield
    assert {number: signal.getsignal(number) for number in ours} == before


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test that is marked `many`, only every fourth case is not slow."""
    n_cases: Counter[str] = Counter()
    for item in items:
        if item.get_closest_marker("many") is not None:
            test = item.nodeid.partition("[")[0]
            if n_cases[test] % 4:
                item.add_marker(pytest.mark.slow)
            n_cases[test] += 1


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Seconds by folder, so that a slower suite shows where."""
    seconds: dict[str, float] = defaultdict(float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds["/".join(Path(report.nodeid.partition("::")[0]).parts[:-1][:3])] += report.duration
    parts = [f"{folder} {taken:.0f}" for folder, taken in sorted(seconds.items(), key=lambda item: -item[1])]
    if parts:
        terminalreporter.write_line(f"seconds by folder: {', '.join(parts)}")
