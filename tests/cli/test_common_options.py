"""`--retry-for`: each command that uses a remote place retries it, counts down on stderr, and ends with 75."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import s3fs

from kdpipe.cache.signing import new_keys
from kdpipe.cache.stores.retries import RetryPolicy
from kdpipe.cli.main import run
from support import tiny
from support.commands import SURFACE
from support.corpora import small_tokenizer, text_rows, write_jsonl
from support.s3 import KEY, SECRET
from support.web import Site, serving

COUNTDOWN = re.compile(r"; retrying in [0-9.]+ s, for at most [0-9.]+ (s|min)")
# What is read, by command; OUT is a new folder, OTHER another cache.
READERS = {
    "cache copy": ["URL", "OUT"],
    "cache export": ["URL", "--to", "parquet", "--out", "OUT"],
    "cache inspect": ["URL"],
    "cache merge": ["URL", "OTHER", "--out", "OUT"],
    "cache requantize": ["URL", "--drop", "hidden", "--out", "OUT"],
    "cache subset": ["URL", "--split", "train", "--out", "OUT"],
    "cache verify": ["URL"],
}
# What else needs a bucket.
BUCKET_USERS = {
    "cache copy": ["CACHE", "URL"],
    "cache merge": ["CACHE", "OTHER", "--out", "URL"],
    "cache requantize": ["CACHE", "--drop", "hidden", "--out", "URL"],
    "cache sign": ["URL", "--key", "KEY"],
    "cache subset": ["CACHE", "--split", "train", "--out", "URL"],
    "cache-teacher": ["--targets", "none", "--tokenizer", "TOKENIZER", "--data", "DATA", "--out", "URL"],
}
EXTENDING = ["--targets", "none", "--tokenizer", "TOKENIZER", "--data", "DATA", "--out", "OUT", "--extend", "URL"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small caches, a key, a tokenizer and documents."""
    path = tmp_path_factory.mktemp("retry-for")
    with tiny.unsynced():
        tiny.make_cache(path / "CACHE")
        tiny.make_cache(
            path / "OTHER", replace(tiny.SMALL, documents={"train": 10, "validation": 3}, documents_per_part=5)
        )
    new_keys(path / "KEY", path / "KEY.pub")
    small_tokenizer(path / "TOKENIZER")
    write_jsonl(path / "DATA.jsonl", text_rows())
    return path


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    with tiny.unsynced():
        yield
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time that passes in pauses alone, however long a request takes."""
    now = [0.0]

    def wait(_: object, seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setitem(RetryPolicy.__init__.__kwdefaults__, "clock", lambda: now[0])
    monkeypatch.setitem(RetryPolicy.__init__.__kwdefaults__, "wait", wait)


def words_of(command: str, words: list[str], folder: Path, out: Path, url: str) -> list[str]:
    """The words of a command, with places for their names."""
    places = {name: str(folder / name) for name in ("CACHE", "OTHER", "KEY", "TOKENIZER")}
    places |= {"URL": url, "OUT": str(out), "DATA": str(folder / "DATA.jsonl")}
    return [*command.split(), *(places.get(word, word) for word in words)]


def countdown(lines: list[str]) -> list[str]:
    return [line for line in lines if COUNTDOWN.search(line)]


def test_every_command_with_the_option_is_tried_here() -> None:
    taking = {name for name, (_, options) in SURFACE.items() if "--retry-for" in options}
    # train and eval are in tests/pipeline/train and tests/cache/transfer: a student is trained for them. compare opens
    # the cache as eval does.
    assert taking == READERS.keys() | BUCKET_USERS.keys() | {"train", "eval", "compare"}


@pytest.mark.slow
@pytest.mark.parametrize("command", READERS)
def test_a_command_continues_after_a_temporary_failure(
    command: str, folder: Path, tmp_path: Path, clock: None, capsys: pytest.CaptureFixture[str]
) -> None:
    site = Site(folder / "CACHE", status=lambda n: 503 if n == 4 else None)
    with serving(site) as url:
        words = words_of(command, READERS[command], folder, tmp_path / "out", url)
        code = run([*words, "--retry-for", "1m"])
    output = capsys.readouterr()
    assert code == 0, output.err
    assert len(countdown(output.err.splitlines())) == 1 and "503" in output.err, output.err
    assert not COUNTDOWN.search(output.out)


@pytest.mark.parametrize("command", READERS)
def test_a_command_ends_with_75_when_a_server_stays_broken(
    command: str, folder: Path, tmp_path: Path, clock: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(Site(folder / "CACHE", status=lambda n: 503 if n > 3 else None)) as url:
        words = words_of(command, READERS[command], folder, tmp_path / "out", url)
        assert run([*words, "--retry-for", "1s"]) == 75
    lines = capsys.readouterr().err.splitlines()
    assert countdown(lines)
    assert lines[-2].startswith("error: ") and "503" in lines[-2] and "--retry-for" in lines[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "words"), [*BUCKET_USERS.items(), ("cache-teacher", EXTENDING)], ids=[*BUCKET_USERS, "extend"]
)
def test_a_command_that_uses_a_bucket_ends_with_75_when_it_stays_broken(
    command: str,
    words: list[str],
    folder: Path,
    tmp_path: Path,
    clock: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with serving(Site(tmp_path, status=lambda _: 503)) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        typed = words_of(command, words, folder, tmp_path / "out", "s3://teachers/cache")
        assert run([*typed, "--retry-for", "1s"]) == 75
    lines = capsys.readouterr().err.splitlines()
    assert countdown(lines) and "s3://teachers/cache" in countdown(lines)[0]
    assert lines[-2].startswith("error: ") and "--retry-for" in lines[-1]


@pytest.mark.parametrize("command", ["cache export", "cache merge", "cache sign", "cache-teacher", "eval"])
def test_what_is_no_duration_is_refused(
    command: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {**READERS, **BUCKET_USERS, "eval": ["--from-cache", "CACHE", "--student", "none"]}[command]
    typed = words_of(command, words, folder, tmp_path / "out", str(folder / "CACHE"))
    assert run([*typed, "--retry-for", "soon"]) == 2
    assert "--retry-for soon" in capsys.readouterr().err


def test_a_web_server_is_not_signed_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Site(folder / "CACHE")) as url:
        assert run(["cache", "sign", url, "--key", str(folder / "KEY")]) == 2
    assert "web server" in capsys.readouterr().err
