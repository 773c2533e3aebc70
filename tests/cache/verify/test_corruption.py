"""Every file of a cache, damaged in every way: it is refused or read right, and verify names it."""

import itertools
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kdpipe.cache import layout
from kdpipe.cache.format.codecs import CHECKSUM_BYTES, crc32c
from kdpipe.cache.format.shards import PLACE_BYTES
from kdpipe.cache.verify import verify_cache
from kdpipe.schemas.choices import VerifyLevel
from kdpipe.schemas.errors import KdpipeError
from support.damage import (
    RECIPES,
    everything_of,
    make_chunked_cache,
    read_index_of,
    reseal,
    shards_of,
    tail_bytes,
)
from support.tiny import copy_cache, extend, files_of, flip_bit, swap_files, truncate

Damage = Callable[[Path], None]
Pristine = tuple[Path, str]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pristine]:
    """A cache of every kind, and all its contents."""
    made = {kind: make_chunked_cache(tmp_path_factory.mktemp("caches") / kind, kind) for kind in RECIPES}
    return {kind: (path, everything_of(path)) for kind, path in made.items()}


@pytest.fixture(
    params=[pytest.param(kind, marks=() if kind == next(iter(RECIPES)) else pytest.mark.slow) for kind in RECIPES]
)
def cache(request: pytest.FixtureRequest, pristine: dict[str, Pristine], tmp_path: Path) -> Pristine:
    """A copy to be damaged, and what it must say."""
    path, right = pristine[request.param]
    return copy_cache(path, tmp_path / "cache"), right


def flipped(place: float, bit: int) -> Damage:
    """One bit, at a share of the file."""
    return lambda file: flip_bit(file, int(place * (file.stat().st_size - 1)), bit)


def zeroed(start: float, n_bytes: int) -> Damage:
    """A stretch of zeros, as a lost sector leaves one."""

    def damage(file: Path) -> None:
        data = file.read_bytes()
        at = int(start * len(data))
        file.write_bytes(data[:at] + bytes(min(n_bytes, len(data) - at)) + data[at + n_bytes :])

    return damage


def flipped_anywhere(file: Path) -> None:
    """One bit at a place that only the file's name decides."""
    rng = random.Random(str(file.name) + str(file.stat().st_size))
    flip_bit(file, rng.randrange(file.stat().st_size), rng.randrange(8))


DAMAGES: dict[str, Damage] = {
    "first bit flipped": flipped(0, 0),
    "last bit flipped": flipped(1, 7),
    "middle bit flipped": flipped(0.5, 3),
    "bit at a quarter flipped": flipped(0.25, 6),
    "bit at nine tenths flipped": flipped(0.9, 1),
    "some bit flipped": flipped_anywhere,
    "some bytes zeroed": zeroed(0.4, 24),
    "second half zeroed": zeroed(0.5, 1 << 30),
    "last byte cut off": lambda file: truncate(file, 1),
    "second half cut off": lambda file: truncate(file, (file.stat().st_size + 1) // 2),
    "emptied": lambda file: os.truncate(file, 0),
    "a zero behind the end": extend,
    "itself behind the end": lambda file: extend(file, file.read_bytes()),
    "deleted": os.unlink,
}
# Much like others, and every file is damaged and read again: in the slower suite.
SLOWER = {name for name in DAMAGES if "at a quarter" in name or "at nine tenths" in name or "second half" in name}
CHANGES_SIZE = {name for name in DAMAGES if not ("flipped" in name or "zeroed" in name)}


def silent_error(path: Path, right: str) -> str | None:
    """What is wrong with how the reader takes a damaged cache: nothing when it refuses, or gives the right data."""
    try:
        return None if everything_of(path) == right else "other data, and no word about it"
    except KdpipeError:
        return None
    except Exception as error:
        return f"{type(error).__name__} instead of a refusal: {error}"


def named(path: Path, level: VerifyLevel) -> set[str]:
    """The files that verify names; a manifest of another format version is refused before there is a report."""
    try:
        report = verify_cache(path, level)
    except KdpipeError as error:
        assert error.exit_code in (3, 4)
        return {layout.MANIFEST} if layout.MANIFEST in error.message else set()
    assert report.ok == (not report.problems)
    return {problem.file for problem in report.problems}


def must_see(name: str, damage: str) -> VerifyLevel:
    """The level at which a damage is seen: sizes and records at the first, all other bytes at the second."""
    is_record = name.endswith(".json") and not name.startswith(layout.TOKENIZER)
    return "fast" if damage in CHANGES_SIZE or is_record or name == layout.INDEX else "full"


def damaged_in_turn(path: Path) -> Iterator[tuple[str, Path]]:
    """Every file, for the caller to damage; it is put right again afterwards."""
    for name in files_of(path):
        data = (path / name).read_bytes()
        yield name, path / name
        (path / name).write_bytes(data)


def test_the_caches_are_good_and_hold_every_kind_of_file(pristine: dict[str, Pristine]) -> None:
    names = set()
    for path, right in pristine.values():
        assert verify_cache(path, "full").ok
        assert everything_of(path) == right
        names |= {Path(name).parts[-4:][0] if "targets.zarr" in name else Path(name).name for name in files_of(path)}
        names |= {name.split("/")[3] for name in files_of(path) if "/targets.zarr/" in name}
    assert {"manifest.json", "index.parquet", "part.json", "sequences.arrow", "text.arrow", "tokenizer.json"} <= names
    assert {"ids_by_rank.bin", "output_head.bin", *layout.ARRAY_NAMES} <= names


def test_sealing_again_changes_nothing(cache: Pristine) -> None:
    path, _ = cache
    before = {name: (path / name).read_bytes() for name in files_of(path)}
    reseal(path)
    assert before == {name: (path / name).read_bytes() for name in files_of(path)}


@pytest.mark.parametrize(
    "damage",
    [pytest.param(each, marks=pytest.mark.slow if each in SLOWER else ()) for each in DAMAGES],
)
def test_a_damaged_file_is_never_read_silently_and_always_named(cache: Pristine, damage: str) -> None:
    path, right = cache
    failures = []
    for name, file in damaged_in_turn(path):
        before = file.read_bytes()
        DAMAGES[damage](file)
        if file.exists() and file.read_bytes() == before:
            continue
        if what := silent_error(path, right):
            failures.append(f"{name}: {what}")
        level = must_see(name, damage)
        if name not in (found := named(path, level)):
            failures.append(f"{name} is not named at level {level}, but {sorted(found)}")
    assert not failures
    assert silent_error(path, right) is None and verify_cache(path).ok


@pytest.mark.slow
def test_a_copy_under_a_name_of_its_own_is_never_read_and_always_named(cache: Pristine) -> None:
    path, right = cache
    failures = []
    for name in files_of(path):
        for extra in (f"{name}.copy", f"{name.rpartition('/')[0]}/zz".lstrip("/"), f"{Path(name).parts[0]}.copy"):
            (path / extra).write_bytes((path / name).read_bytes())
            if what := silent_error(path, right):
                failures.append(f"{extra}: {what}")
            if extra not in named(path, "fast"):
                failures.append(f"{extra} is not named")
            (path / extra).unlink()
    assert not failures


def neighbors(path: Path) -> list[tuple[str, str]]:
    """Pairs of files of one kind: in two parts, or in one part, or side by side at the top, with other bytes."""
    names = files_of(path)
    pairs = []
    for one, other in itertools.combinations(names, 2):
        a, b = one.split("/"), other.split("/")
        same_place_in_parts = a[0] == b[0] == layout.PARTS and a[2:] == b[2:]
        shards = a[:2] == b[:2] and "c" in a and "c" in b
        metadata = a[:2] == b[:2] and a[-1] == b[-1] == layout.ZARR_JSON
        same_folder = len(a) > 1 and a[:-1] == b[:-1]
        if same_place_in_parts or shards or metadata or same_folder or len(a) == len(b) == 1:
            pairs.append((one, other))
    return [(one, other) for one, other in pairs if (path / one).read_bytes() != (path / other).read_bytes()]


def record_of(name: str) -> str:
    """The record with the checksums of files: when it is damaged itself, it is named, and nothing below it is
    checked.
    """
    return "/".join([*name.split("/")[:2], layout.PART_RECORD]) if name.startswith(layout.PARTS) else layout.MANIFEST


def test_two_swapped_files_are_never_read_silently_and_always_named(cache: Pristine) -> None:
    path, right = cache
    failures = []
    for one, other in neighbors(path):
        swap_files(path / one, path / other)
        if what := silent_error(path, right):
            failures.append(f"{one} and {other}: {what}")
        found = named(path, "full")
        unnamed = {name for name in (one, other) if not found & {name, record_of(name)}}
        if unnamed:
            failures.append(f"{one} and {other}: {unnamed} not named, but {sorted(found)}")
        swap_files(path / one, path / other)
    assert not failures


def test_a_file_over_its_neighbor_is_never_read_silently_and_always_named(cache: Pristine) -> None:
    path, right = cache
    failures = []
    for one, other in neighbors(path):
        before = (path / other).read_bytes()
        (path / other).write_bytes((path / one).read_bytes())
        if what := silent_error(path, right):
            failures.append(f"{one} over {other}: {what}")
        if other not in named(path, "full"):
            failures.append(f"{other} is not named")
        (path / other).write_bytes(before)
    assert not failures


def test_some_files_of_two_parts_have_one_size(pristine: dict[str, Pristine]) -> None:
    path, _ = pristine["topk"]
    pairs = [pair for pair in neighbors(path) if "hidden/c" in pair[0] and "hidden/c" in pair[1]]
    assert [(path / one).stat().st_size == (path / other).stat().st_size for one, other in pairs] == [True]


def with_swapped_places(data: bytes, n: int, one: int, other: int) -> bytes:
    """The index names each chunk at the other's number, and its checksum holds."""
    places = read_index_of(data, n)
    places[one], places[other] = places[other], places[one]
    index = b"".join(number.to_bytes(8, "little") for place in places for number in place)
    return data[: -PLACE_BYTES * n - CHECKSUM_BYTES] + index + crc32c(index)


def with_swapped_checksums(data: bytes, n: int, one: int, other: int) -> bytes:
    """The same, and the checksums beside the index swapped too."""
    changed = bytearray(with_swapped_places(data, n, one, other))
    start = len(data) - tail_bytes(n)
    a, b = (slice(start + CHECKSUM_BYTES * i, start + CHECKSUM_BYTES * (i + 1)) for i in (one, other))
    changed[a], changed[b] = changed[b], changed[a]
    return bytes(changed)


def with_swapped_bytes(data: bytes, n: int, one: int, other: int) -> bytes:
    """The chunks themselves, where both have one size: the index stays as it was."""
    (a, size), (b, other_size) = (read_index_of(data, n)[i] for i in (one, other))
    if size != other_size:
        return data
    changed = bytearray(data)
    changed[a : a + size], changed[b : b + size] = data[b : b + size], data[a : a + size]
    return bytes(changed)


@pytest.mark.parametrize("swap", [with_swapped_places, with_swapped_checksums, with_swapped_bytes])
def test_two_swapped_chunks_are_never_read_silently_and_always_named(
    cache: Pristine, swap: Callable[[bytes, int, int, int], bytes]
) -> None:
    path, right = cache
    failures, n_swapped = [], 0
    for file, n in shards_of(path):
        data = file.read_bytes()
        name = file.relative_to(path).as_posix()
        for one, other in {(0, n - 1), (0, 1), (n // 2, n // 2 + 1)}:
            if not 0 <= one < other < n or (changed := swap(data, n, one, other)) == data:
                continue
            n_swapped += 1
            file.write_bytes(changed)
            if what := silent_error(path, right):
                failures.append(f"{name}, chunks {one} and {other}: {what}")
            if name not in named(path, "full"):
                failures.append(f"{name} is not named")
        file.write_bytes(data)
    assert not failures
    assert n_swapped


def test_an_unfinished_cache_refuses_damaged_data_too(pristine: dict[str, Pristine], tmp_path: Path) -> None:
    path = copy_cache(pristine["threshold"][0], tmp_path / "cache")
    (path / layout.INDEX).unlink()
    right = everything_of(path, allow_partial=True)
    failures = []
    for name, file in damaged_in_turn(path):
        if name.startswith(layout.PARTS) and not name.endswith(layout.PART_RECORD):
            flipped_anywhere(file)
            try:
                if everything_of(path, allow_partial=True) != right:
                    failures.append(name)
            except KdpipeError:
                continue
    assert not failures


def test_the_journal_may_say_anything_since_nothing_is_read_from_it(cache: Pristine) -> None:
    path, right = cache
    (path / layout.JOURNAL).mkdir()
    (path / layout.journal_file(0)).write_bytes(b"\x00 not JSON")
    assert everything_of(path) == right and verify_cache(path).ok
    (path / layout.JOURNAL / "notes.txt").write_bytes(b"")
    assert named(path, "fast") == {f"{layout.JOURNAL}/notes.txt"}
