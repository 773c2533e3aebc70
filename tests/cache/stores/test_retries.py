"""Retries: what heals is tried again and reported, what cannot heal fails at once, by every command alike."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from kdpipe.cache import inspect, open_cache
from kdpipe.cache.stores import http_store as http
from kdpipe.cache.stores.retries import RetryPolicy
from kdpipe.cache.transfer import copy_cache
from kdpipe.cache.verify import verify_cache
from kdpipe.cli.main import run
from kdpipe.schemas.durations import in_seconds
from kdpipe.schemas.errors import CacheError, ConfigError, ConnectionFailed, Unreachable
from support import tiny
from support.web import Site, serving


@dataclass
class Clock:
    """Time that passes while somebody waits; the pauses."""

    now: float = 0.0
    pauses: list[float] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def wait(self, _: threading.Event, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def retry_policy(self, **changes: Any) -> RetryPolicy:
        return RetryPolicy(
            clock=lambda: self.now, wait=self.wait, draw=lambda: 1.0, report=self.lines.append, **changes
        )


@pytest.fixture
def clock() -> Clock:
    return Clock()


def failing(*errors: Exception) -> Callable[[], str]:
    """Fail with each of these, then work."""
    left = list(errors)

    def work() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return work


def test_a_retry_reports_the_cause_the_pause_and_the_time_left(clock: Clock) -> None:
    assert clock.retry_policy().call(failing(*[Unreachable("x answers 503")] * 3)) == "done"
    assert clock.pauses == [0.5, 1.0, 2.0]
    assert clock.lines == [
        "x answers 503; retrying in 0.5 s, for at most 5 min 0 s",
        "x answers 503; retrying in 1.0 s, for at most 4 min 59 s",
        "x answers 503; retrying in 2.0 s, for at most 4 min 58 s",
    ]


def test_retries_end_when_their_time_is_over(clock: Clock) -> None:
    with pytest.raises(Unreachable, match="x answers 503; retried for 20 s") as caught:
        clock.retry_policy(budget=20.0).call(failing(*[Unreachable("x answers 503")] * 99))
    assert (caught.value.exit_code, clock.now) == (75, 20.0)
    assert "--retry-for" in str(caught.value.hint)


def test_no_time_means_no_retry(clock: Clock) -> None:
    with pytest.raises(Unreachable, match="x answers 503"):
        clock.retry_policy(budget=0.0).call(failing(Unreachable("x answers 503")))
    assert not clock.pauses


def test_retry_after_is_respected(clock: Clock) -> None:
    assert clock.retry_policy().call(failing(Unreachable("busy", wait_seconds=40.0))) == "done"
    assert clock.pauses == [40.0]


def test_a_longer_pause_than_there_is_time_for_ends_the_retries_at_once(clock: Clock) -> None:
    with pytest.raises(Unreachable, match="busy; the server requests a pause of 3,600 s") as caught:
        clock.retry_policy().call(failing(Unreachable("busy", wait_seconds=3600.0)))
    assert caught.value.exit_code == 75 and not clock.pauses


def test_a_connection_that_is_refused_at_the_first_request_fails_at_once(clock: Clock) -> None:
    with pytest.raises(ConnectionFailed) as caught:
        clock.retry_policy().call(failing(ConnectionFailed("refused")))
    assert caught.value.exit_code == 1 and not clock.pauses and not clock.lines


def test_a_connection_that_is_refused_after_an_answer_is_retried(clock: Clock) -> None:
    retry_policy = clock.retry_policy(budget=10.0).at("http://host:1/a")
    retry_policy.call(failing())
    again = retry_policy.at("http://host:1/b")  # the same host, as another store of the command
    assert again.call(failing(ConnectionFailed("refused"))) == "done"
    with pytest.raises(Unreachable, match="refused; retried for 10 s") as caught:
        again.call(failing(*[ConnectionFailed("refused")] * 99))
    assert caught.value.exit_code == 75
    with pytest.raises(ConnectionFailed):
        again.at("http://host:2/a").call(failing(ConnectionFailed("refused")))


def test_many_who_wait_for_one_place_report_it_once(clock: Clock) -> None:
    retry_policy = replace(clock.retry_policy().at("http://host/a"), wait=lambda *_: None)  # all at the same moment
    for _ in range(8):
        retry_policy.call(failing(Unreachable("x answers 503")))
    assert len(clock.lines) == 1


def test_a_policy_goes_to_another_process_with_its_times() -> None:
    rebuild, words = RetryPolicy(budget=7.0).at("http://host/a").__reduce__()
    there = rebuild(*words)  # type: ignore[operator,misc]
    assert (there.budget, there.host) == (7.0, "http://host")


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90.0), ("30s", 30.0), ("5m", 300.0), ("1h30m", 5400.0), ("0", 0.0), ("1.5m", 90.0)]
)
def test_a_duration_is_read_as_people_write_it(text: str, seconds: float) -> None:
    assert in_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "5 minutes", "-1", "nan", "5m3"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a duration is"):
        in_seconds(text)


# From here on real servers and drivers.


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small cache in a folder."""
    folder = tmp_path_factory.mktemp("retries") / "cache"
    with tiny.unsynced():
        tiny.make_cache(folder)
    return folder


@pytest.fixture
def no_accounts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No credentials of the machine, and no service on the network that has any."""
    import os

    import s3fs

    for name in list(os.environ):
        if name.startswith(("AWS_", "HF_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


# Nothing listens on port 9 of this machine, and names under .invalid do not exist.
REFUSED, UNKNOWN = "http://127.0.0.1:9/x", "http://nohost.invalid/x"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("url", "endpoint", "code"),
    [
        ("s3://nosuchbucket/x", None, 2),
        ("s3://nosuchbucket/x", "http://127.0.0.1:9", 1),
        ("s3://nosuchbucket/x", "http://nohost.invalid", 1),
        ("s3://No_Such!/x", "http://127.0.0.1:9", 2),
        (REFUSED, None, 1),
        (UNKNOWN, None, 1),
        ("http://[::/x", None, 2),
    ],
)
def test_what_cannot_heal_fails_at_once_with_what_to_do(
    url: str,
    endpoint: str | None,
    code: int,
    path: Path,
    tmp_path: Path,
    no_accounts: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if endpoint is not None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "A" * 20)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b" * 40)
    commands = [["copy", url, str(tmp_path / "out")], ["verify", url], ["inspect", url]]
    if url.startswith("s3:"):
        commands.append(["copy", str(path), url])
    for words in commands:
        assert run(["cache", *words]) == code, words
        error, hint = capsys.readouterr().err.splitlines()  # and no line of a retry
        assert error.startswith("error: ") and hint.startswith("hint: "), words


@pytest.mark.parametrize("host", ["http://127.0.0.1:9", "http://nohost.invalid"])
def test_a_hub_that_is_not_there_fails_at_once(host: str) -> None:
    from huggingface_hub import HfApi

    from kdpipe.cache.stores import hub_store as hub

    with pytest.raises(ConnectionFailed), hub._hub_errors("hf://datasets/me/x"):
        HfApi(endpoint=host).repo_info("me/x", repo_type="dataset")


@pytest.mark.parametrize("code", [400, 401, 403, 410, 501])
def test_a_permanent_error_is_not_retried(code: int, path: Path, clock: Clock) -> None:
    site = Site(path, status=lambda n: code if n > 2 else None)
    with serving(site) as url, pytest.raises((CacheError, ConfigError)) as caught:
        verify_cache(url, "fast", clock.retry_policy())
    assert caught.value.exit_code in (1, 2) and not clock.pauses


READS: dict[str, Callable[[str, Path, RetryPolicy], object]] = {
    "verify": lambda url, _, retry_policy: verify_cache(url, "full", retry_policy),
    "inspect": lambda url, _, retry_policy: inspect.inspect_cache(url, retry_policy),
    "copy": lambda url, folder, retry_policy: copy_cache(url, folder / "copy", retry_policy=retry_policy),
    "tokenizer": lambda url, _, retry_policy: open_cache(url, retry_policy=retry_policy).tokenizer_files(),
    "read": lambda url, _, retry_policy: open_cache(url, retry_policy=retry_policy)[0],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "code"),
    [*((what, 503) for what in READS), *(("inspect", code) for code in (408, 425, 429, 500, 502, 504))],
)
def test_every_read_is_retried_after_a_temporary_failure(
    what: str, code: int, path: Path, tmp_path: Path, clock: Clock
) -> None:
    whole = Site(path)
    with serving(whole) as url:
        expected = READS[what](url, tmp_path / "whole", clock.retry_policy())
    assert not clock.lines
    # Every third request fails, of whatever kind it is; the first one as well.
    site = Site(path, status=lambda n: code if n % 3 == 1 else None)
    with serving(site) as url:
        found = READS[what](url, tmp_path / "faulty", clock.retry_policy())
    if what in ("verify", "tokenizer"):
        assert found == expected
    assert clock.pauses and str(code) in clock.lines[0]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["verify", "inspect", "copy"])
def test_the_pause_that_a_server_asks_for_is_kept(what: str, path: Path, tmp_path: Path, clock: Clock) -> None:
    site = Site(path, status=lambda n: 429 if n == 4 else None, retry_after="17")
    with serving(site) as url:
        READS[what](url, tmp_path, clock.retry_policy())
    assert clock.pauses == [17.0]
    assert "retrying in 17 s" in clock.lines[0]


def test_a_date_until_which_a_server_wants_no_request_is_kept(path: Path) -> None:
    for text, least, most in [
        ("Fri, 31 Dec 2999 23:59:59 GMT", 1e9, 1e12),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 0.0, 0.0),
        ("soon", 0.0, 0.0),
        ("", 0.0, 0.0),
    ]:
        answer = httpx.Response(503, headers={"Retry-After": text})
        assert least <= http._requested_pause(answer) <= most


@pytest.mark.slow
def test_a_server_that_stays_broken_ends_with_75_after_reports(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Site(path, status=lambda n: 503 if n > 3 else None)) as url:
        for words in (["inspect", url], ["verify", url]):
            assert run(["cache", *words, "--retry-for", "3s"]) == 75
            *lines, error, _ = capsys.readouterr().err.splitlines()
            assert lines and all("; retrying in " in line and "for at most " in line for line in lines)
            assert error.startswith("error: ") and "503" in error
    assert run(["cache", "inspect", str(path), "--retry-for", "soon"]) == 2


@pytest.mark.slow
def test_a_cache_that_is_good_is_good_behind_a_server_that_fails(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(Site(path, status=lambda n: 500 if n == 9 else None)) as url:
        assert run(["cache", "verify", url, "--level", "deep", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"]


class OwnTime:
    """A clock for each thread, a second further whenever it is looked at."""

    def __init__(self) -> None:
        self._local = threading.local()

    def __call__(self) -> float:
        self._local.now = getattr(self._local, "now", 0.0) + 1.0
        return float(self._local.now)


def test_an_answer_that_trickles_is_a_stall_and_a_steady_one_is_not() -> None:
    floor = http.RateFloor(clock=OwnTime())
    steady = [b"x" * 2000] * 500
    assert list(floor.held(iter(steady), "x")) == steady
    with pytest.raises(Unreachable, match=r"x stalled: 6\d bytes in 6\d s"):
        list(floor.held(iter([b"x"] * 500), "x"))
    slowing = [b"x" * 2000] * 120 + [b"x"] * 500  # what came fast before does not help
    with pytest.raises(Unreachable, match="x stalled"):
        list(floor.held(iter(slowing), "x"))


@pytest.mark.slow
@pytest.mark.parametrize("what", ["verify", "copy", "inspect"])
def test_a_server_that_trickles_is_disconnected_and_retried(
    what: str, path: Path, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    floor = http.RateFloor(clock=OwnTime())
    monkeypatch.setattr(http, "RateFloor", lambda: floor)
    site = Site(path, due=lambda n: "trickle" if n == 4 else None)
    with serving(site) as url:
        READS[what](url, tmp_path, clock.retry_policy())
    assert len(clock.lines) == 1 and "stalled" in clock.lines[0] and "retrying in" in clock.lines[0]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("what", ["verify", "copy", "inspect"])
def test_headers_that_trickle_are_dropped_and_requested_again(
    what: str, method: str, path: Path, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    floor = http.RateFloor(clock=OwnTime())
    monkeypatch.setattr(http, "RateFloor", lambda: floor)
    slow: list[int] = []

    def is_first(requested: str, number: int) -> bool:
        if requested == method and not slow:
            slow.append(number)
        return slow == [number]

    with serving(Site(path, slow_headers=is_first)) as url:
        READS[what](url, tmp_path, clock.retry_policy())
    assert slow and len(clock.lines) == 1
    assert "ReadTimeout: stalled" in clock.lines[0] and "retrying in" in clock.lines[0]


def test_a_server_whose_headers_always_trickle_ends_with_75(path: Path, clock: Clock) -> None:
    floor = http.RateFloor(clock=OwnTime())
    with (
        serving(Site(path, slow_headers=lambda _method, _number: True)) as url,
        pytest.raises(Unreachable, match="stalled") as caught,
    ):
        http.HttpStore(url, floor=floor, retry_policy=clock.retry_policy(budget=1.0))
    assert caught.value.exit_code == 75 and len(clock.lines) == 2


@pytest.mark.parametrize("what", ["verify", "copy", "inspect"])
def test_an_encoding_that_was_not_requested_is_refused(what: str, path: Path, tmp_path: Path, clock: Clock) -> None:
    with (
        serving(Site(path, encoding="gzip")) as url,
        pytest.raises(CacheError, match="Content-Encoding gzip") as caught,
    ):
        READS[what](url, tmp_path, clock.retry_policy())
    assert caught.value.exit_code == 1 and not clock.lines
