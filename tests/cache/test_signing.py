"""Signatures: a key proves whose cache it is, wherever it was copied."""

import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from kdpipe.cache import open_cache
from kdpipe.cache.signing import SIGNATURE, new_keys, signature_problem
from kdpipe.cache.stores.dispatch import open_store
from kdpipe.cache.transfer import copy_cache
from kdpipe.cache.verify import signature, verify_cache
from kdpipe.cli import main
from kdpipe.schemas.errors import CacheDamaged, CacheIncomplete, ConfigError
from kdpipe.schemas.progress import SilentProgress
from support import tiny


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small cache, two key pairs."""
    folder = tmp_path_factory.mktemp("signing")
    with tiny.unsynced():
        tiny.make_cache(folder / "cache")
    for name in ("mine", "other"):
        new_keys(folder / f"{name}.pem", folder / f"{name}.pub.pem")
    return folder


def sign_cache(url: str, key: Path) -> str:
    """Sign a cache as the command line does."""
    return signature.sign_cache(url, key, SilentProgress())


def problem_of(cache: str | Path, key: Path) -> str | None:
    """What is wrong with the signature of a cache as it is now."""
    return signature_problem(open_store(cache), key, verify_cache(cache, "fast").cache_id)


@pytest.fixture(autouse=True)
def unsynced() -> Iterator[None]:
    with tiny.unsynced():
        yield


def test_a_signed_cache_is_known_by_the_right_key_alone(path: Path, tmp_path: Path) -> None:
    cache = tiny.copy_cache(path / "cache", tmp_path / "cache")
    assert problem_of(cache, path / "mine.pub.pem") == "the cache is not signed"
    assert sign_cache(str(cache), path / "mine.pem") == open_cache(cache).cache_id
    assert problem_of(cache, path / "mine.pub.pem") is None
    reported = problem_of(cache, path / "other.pub.pem")
    assert reported is not None and reported.startswith("it was not made with the private half of")
    assert verify_cache(cache, "full").ok


def test_a_signature_travels_with_copies(path: Path, tmp_path: Path) -> None:
    cache = tiny.copy_cache(path / "cache", tmp_path / "cache")
    sign_cache(str(cache), path / "other.pem")
    copy_cache(cache, "memory://signed/cache")
    sign_cache(str(cache), path / "mine.pem")
    copy_cache(cache, "memory://signed/cache")
    copy_cache("memory://signed/cache", tmp_path / "back")
    assert problem_of(tmp_path / "back", path / "mine.pub.pem") is None
    sign_cache("memory://signed/cache", path / "other.pem")
    assert problem_of("memory://signed/cache", path / "other.pub.pem") is None
    fsspec.filesystem("memory").rm("/signed", recursive=True)


def test_a_signature_of_another_cache_or_spoilt_is_reported(path: Path, tmp_path: Path) -> None:
    cache = tiny.copy_cache(path / "cache", tmp_path / "cache")
    sign_cache(str(cache), path / "mine.pem")
    identity = str(open_cache(cache).cache_id)
    data = (cache / SIGNATURE).read_text()
    (cache / SIGNATURE).write_text(data.replace(identity, "0" * 64))
    reported = problem_of(cache, path / "mine.pub.pem")
    assert reported == f"it is of the cache {'0' * 64}, and this one is {identity}"
    for spoilt in (data.replace('"signature":"', '"signature":"AAAA'), data.replace('"signature":"', '"signature":"!')):
        (cache / SIGNATURE).write_text(spoilt)
        assert "was not made with" in str(problem_of(cache, path / "mine.pub.pem"))


@pytest.mark.parametrize(
    ("key", "reported"),
    [
        ("nowhere.pem", "the private key .*nowhere.pem cannot be read: No such file"),
        ("mine.pub.pem", "mine.pub.pem is no private key in PEM without a password"),
        ("cache/manifest.json", "manifest.json is no private key in PEM"),
    ],
)
def test_what_is_no_key_is_refused(path: Path, key: str, reported: str) -> None:
    with pytest.raises(ConfigError, match=reported):
        sign_cache(str(path / "cache"), path / key)


def test_only_a_finished_cache_is_signed_and_keys_are_never_replaced(path: Path, tmp_path: Path) -> None:
    cache = tiny.copy_cache(path / "cache", tmp_path / "cache")
    (cache / "index.parquet").unlink()
    with pytest.raises(CacheIncomplete, match="is unfinished"):
        sign_cache(str(cache), path / "mine.pem")
    with pytest.raises(ConfigError, match=r"mine.pem already exists"):
        new_keys(path / "mine.pem", path / "new.pub.pem")
    assert (path / "mine.pem").stat().st_mode & 0o077 == 0


def test_signing_and_checking_as_a_person_does_it(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = str(tiny.copy_cache(path / "cache", tmp_path / "cache"))
    key = tmp_path / "me"
    assert main.run(["cache", "sign", "--new-key", str(key)]) == 0
    assert "private key" in capsys.readouterr().out
    assert main.run(["cache", "sign", cache, "--key", f"{key}.pem"]) == 0
    assert capsys.readouterr().out == f"signed {open_cache(cache).cache_id}\n"
    assert main.run(["cache", "verify", cache, "--signature", f"{key}.pub.pem"]) == 0
    assert "signature valid" in capsys.readouterr().err
    assert main.run(["cache", "verify", cache, "--signature", str(path / "mine.pub.pem")]) == 3
    assert "manifest.sig: it was not made with the private half of" in capsys.readouterr().out
    assert main.run(["cache", "sign", cache]) == 2
    assert main.run(["cache", "sign", cache, "--new-key", "x"]) == 2
    reported = capsys.readouterr().err
    assert "--key" in reported and "--new-key" in reported


@pytest.mark.parametrize(
    "name",
    ["parts/00001/sequences.arrow", "parts/00000/targets.zarr/id/c/0", "tables/ids_by_rank.bin", "index.parquet"],
)
def test_a_damaged_cache_is_not_signed(
    path: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tiny.copy_cache(path / "cache", tmp_path / "cache")
    tiny.flip_bit(cache / name, (cache / name).stat().st_size // 2)
    with pytest.raises(CacheDamaged, match=Path(name).name):
        sign_cache(str(cache), path / "mine.pem")
    assert main.run(["cache", "sign", str(cache), "--key", str(path / "mine.pem")]) == 3
    assert capsys.readouterr().out == ""
    assert not (cache / SIGNATURE).exists()


def test_a_damaged_cache_keeps_the_signature_that_it_had(path: Path, tmp_path: Path) -> None:
    cache = tiny.copy_cache(path / "cache", tmp_path / "cache")
    sign_cache(str(cache), path / "mine.pem")
    before = (cache / SIGNATURE).read_bytes()
    tiny.flip_bit(cache / "parts/00001/sequences.arrow", 1000)
    with pytest.raises(CacheDamaged):
        sign_cache(str(cache), path / "other.pem")
    assert (cache / SIGNATURE).read_bytes() == before


def test_a_damaged_cache_at_a_url_is_not_signed(path: Path, tmp_path: Path) -> None:
    cache = tiny.copy_cache(path / "cache", tmp_path / "cache")
    tiny.flip_bit(cache / "parts/00001/sequences.arrow", 1000)
    memory = fsspec.filesystem("memory")
    memory.put(str(cache), "/unsigned/cache", recursive=True)
    with pytest.raises(CacheDamaged):
        sign_cache("memory://unsigned/cache", path / "mine.pem")
    assert not memory.exists("/unsigned/cache/manifest.sig")
    memory.rm("/unsigned", recursive=True)


@pytest.mark.slow
def test_a_signature_is_never_checked_without_every_byte(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tiny.copy_cache(path / "cache", tmp_path / "cache")
    sign_cache(str(cache), path / "mine.pem")
    words = ["cache", "verify", str(cache), "--signature", str(path / "mine.pub.pem")]
    assert main.run([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["level"] == "full"
    assert main.run([*words, "--level", "deep", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["level"] == "deep"
    tiny.flip_bit(cache / "parts/00001/sequences.arrow", 1000)
    assert main.run([*words, "--level", "fast"]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and "--level fast" in shown.err and "signed by" not in shown.err
    assert main.run(words) == 3
    shown = capsys.readouterr()
    assert "parts/00001/sequences.arrow" in shown.out and "signed by the holder" not in shown.err


def test_a_signature_vouches_for_the_bytes_that_were_verified(path: Path, tmp_path: Path) -> None:
    """A server may serve another cache by the time the signature is requested."""
    signed = tiny.copy_cache(path / "cache", tmp_path / "signed")
    sign_cache(str(signed), path / "mine.pem")
    reported = signature_problem(open_store(signed), path / "mine.pub.pem", "f" * 64)
    assert reported is not None and reported.endswith(f"and this one is {'f' * 64}")
    assert "not known" in str(signature_problem(open_store(signed), path / "mine.pub.pem", None))


@pytest.mark.parametrize("spoil", [b"{bad", b"", None])
def test_a_damaged_signature_is_a_problem_beside_the_report(
    path: Path, tmp_path: Path, spoil: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tiny.copy_cache(path / "cache", tmp_path / "cache")
    if spoil is None:
        (cache / SIGNATURE).mkdir()
    else:
        (cache / SIGNATURE).write_bytes(spoil)
    words = ["cache", "verify", str(cache), "--signature", str(path / "mine.pub.pem"), "--json"]
    assert main.run(words) == 3
    report = json.loads(capsys.readouterr().out)
    assert not report["ok"] and {problem["file"] for problem in report["problems"]} == {SIGNATURE}
