"""Copies of some parts, or without what can be left out: caches of their own, whole, that say what they are."""

import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import httpx
import pytest

from kdpipe.cache import layout, open_cache
from kdpipe.cache.fetch.file import Fetcher
from kdpipe.cache.reshape.merge import merge
from kdpipe.cache.stores import http_store as http
from kdpipe.cache.stores.retries import RetryPolicy
from kdpipe.cache.transfer import copy_cache, copying
from kdpipe.cache.verify import verify_cache
from kdpipe.schemas.copy_report import PartSelection
from kdpipe.schemas.errors import CacheDamaged, CacheIncomplete, ConfigError, Incompatible, Unreachable
from kdpipe.schemas.reshape import Bounds
from support import damage, tiny
from support.kinds import make_kind
from support.reading import digests_of_all
from support.reshaped import documents_in, problems_in
from support.web import FAULTS, Site, serving

HASTY = RetryPolicy(budget=5.0, first=0.001, longest=0.002)
MIDDLE = PartSelection(parts=Bounds(first=1, end=3))
LEAN = PartSelection(parts=Bounds(first=1, end=3), split="train", without=("hidden", "text"))


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(http, "TIMEOUT", httpx.Timeout(0.5))
    with tiny.unsynced():
        yield


@pytest.fixture(scope="module")
def lean(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The parts 1 and 2 of the small cache, without what can be left out."""
    folder = tmp_path_factory.mktemp("choosing") / "lean"
    with tiny.unsynced():
        copy_cache(path, folder, selection=LEAN)
    return folder


def files_of_part(path: Path, number: int) -> dict[str, str]:
    found = tiny.digests_of(path / layout.part_dir(number))
    del found[layout.PART_RECORD]
    return found


def test_selected_parts_are_a_cache_of_their_own_with_the_same_files(path: Path, tmp_path: Path) -> None:
    report = copy_cache(path, tmp_path / "some", selection=MIDDLE)
    some, whole = open_cache(tmp_path / "some"), open_cache(path)
    assert [files_of_part(tmp_path / "some", n) for n in (0, 1)] == [files_of_part(path, n) for n in (1, 2)]
    assert (report.cache_id, report.made_from, report.selection) == (some.cache_id, whole.cache_id, "parts 1:3")
    assert some.cache_id != whole.cache_id
    assert some.manifest.history[-1].model_dump() == {
        "action": "copy",
        "caches": (whole.cache_id,),
        "note": "parts 1:3",
    }
    assert [split.bounds for split in some.manifest.plan.splits] == [(0, 4, 8)]
    assert problems_in(tmp_path / "some") == [] and verify_cache(tmp_path / "some", "full").ok
    assert some[0].weights.tobytes() == whole.part(1).rows(0, 1).weights.tobytes()


def test_a_split_is_copied_alone(path: Path, tmp_path: Path) -> None:
    copy_cache(path, tmp_path / "some", selection=PartSelection(split="validation"))
    assert digests_of_all(open_cache(tmp_path / "some")) == digests_of_all(open_cache(path, "validation"))
    assert [split.name for split in open_cache(tmp_path / "some").manifest.plan.splits] == ["validation"]


@pytest.mark.parametrize("without", [("hidden",), ("text",), ("hidden", "text")])
def test_what_is_left_out_is_gone_and_all_else_is_the_same(
    path: Path, tmp_path: Path, without: tuple[str, ...]
) -> None:
    copy_cache(path, tmp_path / "some", selection=PartSelection(without=without))
    assert documents_in(tmp_path / "some", without) == documents_in(path, without)
    some = open_cache(tmp_path / "some")
    assert some.manifest.data.text == ("text" not in without)
    assert bool(some.manifest.hidden.rows) == ("hidden" not in without)
    assert some.manifest.hidden.pooled == open_cache(path).manifest.hidden.pooled
    assert problems_in(tmp_path / "some") == [] and verify_cache(tmp_path / "some", "full").ok
    files = {name.partition("/")[2].partition("/")[2] for name in tiny.files_of(tmp_path / "some")}
    assert (layout.TEXT in files) == ("text" not in without)
    assert (layout.array_metadata("hidden") in files) == ("hidden" not in without)


@pytest.mark.parametrize("kind", ["threshold", "state", "none-hidden"])
def test_tables_of_what_is_left_out_stay_behind(tmp_path: Path, kind: str) -> None:
    make_kind(tmp_path / "one", kind)
    copy_cache(tmp_path / "one", tmp_path / "some", selection=PartSelection(without=("hidden",)))
    tables = {table.name for table in open_cache(tmp_path / "some").manifest.tables}
    assert {name.removesuffix(".bin") for name in os.listdir(tmp_path / "some" / layout.TABLES)} == tables
    assert not [name for name in tables if name.startswith("pca_rows")]
    assert problems_in(tmp_path / "some") == []


def test_the_same_selection_is_the_same_cache_from_anywhere_to_anywhere(path: Path, lean: Path, tmp_path: Path) -> None:
    with serving(Site(path)) as url:
        copy_cache(url, tmp_path / "web", selection=LEAN)
    memory = fsspec.filesystem("memory")
    copy_cache(path, "memory://to/lean", selection=LEAN)
    memory.get("/to/lean", str(tmp_path / "memory"), recursive=True)
    memory.rm("/to", recursive=True)
    assert tiny.digests_of(tmp_path / "web") == tiny.digests_of(tmp_path / "memory") == tiny.digests_of(lean)


def test_only_what_is_needed_is_read(path: Path, tmp_path: Path) -> None:
    site = Site(path)
    with serving(site) as url:
        report = copy_cache(url, tmp_path / "some", selection=LEAN)
    read = {what.split()[0].lstrip("/") for what in site.requested if "bytes=" in what}
    files = {name for name in tiny.files_of(path) if name.startswith(("parts/00001/", "parts/00002/"))}
    # part.json and zarr.json are made here.
    unread = (layout.TEXT, layout.PART_RECORD, layout.ZARR_JSON)
    left_out = {name for name in files if "/hidden/" in name or name.endswith(unread)}
    shared = {name for name in read if not name.startswith(layout.PARTS)}
    assert read - shared == files - left_out
    assert report.bytes == sum((path / name).stat().st_size for name in read)


def test_the_same_selection_again_repairs_damaged_files_only(path: Path, lean: Path, tmp_path: Path) -> None:
    some = tiny.copy_cache(lean, tmp_path / "some")
    again = copy_cache(path, some, selection=LEAN)
    assert (again.copied, again.bytes, again.cache_id) == (0, 0, open_cache(lean).cache_id)
    tiny.flip_bit(some / "parts/00000/sequences.arrow", 900)
    (some / "parts/00001/part.json").unlink()
    (some / layout.INDEX).unlink()
    report = copy_cache(path, some, repair=True)
    assert (report.copied, report.repaired, report.selection) == (2, (0, 1), str(LEAN))
    assert tiny.digests_of(some) == tiny.digests_of(lean)


def test_a_smaller_cache_is_repaired_from_a_copy_of_itself_too(lean: Path, tmp_path: Path) -> None:
    some = tiny.copy_cache(lean, tmp_path / "some")
    tiny.flip_bit(some / "parts/00000/sequences.arrow", 900)
    assert copy_cache(lean, some, repair=True).repaired == (0,)
    assert tiny.digests_of(some) == tiny.digests_of(lean)


def test_another_selection_is_refused_with_what_differs(path: Path, lean: Path, tmp_path: Path) -> None:
    reported = "holds another cache: selection: existing 'parts 1:3; split train;"
    fsspec.filesystem("memory").put(str(lean), "/other/lean", recursive=True)
    for place in (str(lean), "memory://other/lean"):
        with pytest.raises(ConfigError, match=r"selection: existing .*, requested 'parts 1:3'") as caught:
            copy_cache(path, place, selection=MIDDLE)
        assert reported.partition(" without")[0] in caught.value.message
        assert "--parts, --split and --without" in str(caught.value.hint)
        with pytest.raises(ConfigError, match=r"source caches: existing copy \(parts 1:3.*\), requested none"):
            copy_cache(path, place)
    fsspec.filesystem("memory").rm("/other", recursive=True)


def test_a_damaged_manifest_does_not_turn_a_smaller_cache_into_the_whole_one(
    path: Path, lean: Path, tmp_path: Path
) -> None:
    some = tiny.copy_cache(lean, tmp_path / "some")
    (some / layout.MANIFEST).write_bytes(b"?")
    with pytest.raises(ConfigError, match=r"manifest.json is damaged"):
        copy_cache(path, some, repair=True)
    copy_cache(path, some, selection=LEAN)
    assert tiny.digests_of(some) == tiny.digests_of(lean)


@pytest.mark.parametrize(
    ("selection", "reported", "hint"),
    [
        (PartSelection(parts=Bounds(first=9)), "nothing is left", "less strict"),
        (
            PartSelection(without=("entropy",)),
            "cannot be copied without entropy",
            "hidden, text",
        ),
        (
            PartSelection(without=("hidden", "pooled")),
            "cannot be copied without pooled",
            "hidden, text",
        ),
    ],
)
def test_what_cannot_be_selected_is_refused(
    path: Path, tmp_path: Path, selection: PartSelection, reported: str, hint: str
) -> None:
    with pytest.raises(ConfigError, match=reported) as caught:
        copy_cache(path, tmp_path / "some", selection=selection)
    assert hint in str(caught.value.hint)
    assert not (tmp_path / "some").exists()


def test_what_a_cache_does_not_have_cannot_be_left_out(lean: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be copied without hidden") as caught:
        copy_cache(lean, tmp_path / "some", selection=PartSelection(without=("hidden",)))
    assert str(caught.value.hint).endswith(": none")
    with pytest.raises(ConfigError, match="split validation") as caught:
        copy_cache(lean, tmp_path / "some", selection=PartSelection(split="validation"))
    assert caught.value.hint == "its splits are train"


def test_an_unfinished_cache_gives_no_smaller_one(path: Path, tmp_path: Path) -> None:
    unfinished = tiny.copy_cache(path, tmp_path / "unfinished")
    (unfinished / layout.INDEX).unlink()
    with pytest.raises(CacheIncomplete, match="is unfinished"):
        copy_cache(unfinished, tmp_path / "some", selection=MIDDLE)
    with pytest.raises(ConfigError, match="parts 1:3") as caught:
        copy_cache(unfinished, tmp_path / "some", selection=MIDDLE, allow_partial=True)
    assert "--allow-partial" in str(caught.value.hint)


def test_a_newer_format_is_copied_whole_but_not_in_part(path: Path, tmp_path: Path) -> None:
    newer = tmp_path / "newer"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdpipe.cache.reshape.sources.MINOR", -1)
        with pytest.raises(Incompatible, match=r"is of format 1\.\d"):
            copy_cache(path, newer, selection=MIDDLE)
    copy_cache(path, newer)


def test_a_smaller_copy_is_made_smaller_again_and_merged(path: Path, lean: Path, tmp_path: Path) -> None:
    copy_cache(lean, tmp_path / "one", selection=PartSelection(parts=Bounds(end=1)))
    copy_cache(lean, tmp_path / "two", selection=PartSelection(parts=Bounds(first=1)))
    notes = [origin.note for origin in open_cache(tmp_path / "two").manifest.history]
    assert notes == ["parts 1:3; split train; without hidden, text", "parts 1:"]
    merge([str(tmp_path / "one"), str(tmp_path / "two")], str(tmp_path / "both"), "refuse")
    assert digests_of_all(open_cache(tmp_path / "both")) == digests_of_all(open_cache(lean))


def test_a_damaged_file_of_the_source_is_named_as_in_the_source(path: Path, tmp_path: Path) -> None:
    spoilt = tiny.copy_cache(path, tmp_path / "spoilt")
    tiny.flip_bit(spoilt / "parts/00002/sequences.arrow", 1000)
    with pytest.raises(CacheDamaged, match=r"^parts/00002/sequences.arrow "):
        copy_cache(spoilt, tmp_path / "some", selection=MIDDLE)
    assert not (tmp_path / "some/parts/00001").exists() and not (tmp_path / "some" / layout.INDEX).exists()


def test_a_record_that_lists_what_no_part_has_is_refused(path: Path, tmp_path: Path) -> None:
    spoilt = tiny.copy_cache(path, tmp_path / "spoilt")
    record = spoilt / "parts/00001" / layout.PART_RECORD
    record.write_bytes(record.read_bytes().replace(b'"text.arrow"', b'"test.arrow"'))
    with pytest.raises(CacheDamaged, match=r"part.json is not the one that index.parquet names"):
        copy_cache(spoilt, tmp_path / "some", selection=MIDDLE)


def copy_until(path: Path, some: Path, most: int) -> int:
    """Copy in a child that is killed when it begins to fetch one file too many; the signal that it died of."""
    child = os.fork()
    if not child:
        fetch, begun = Fetcher.fetch, []

        def dying(self: Fetcher, *words: object) -> None:
            begun.append(words)
            if len(begun) > most:
                os.kill(os.getpid(), 9)
            fetch(self, *words)  # type: ignore[arg-type]

        Fetcher.fetch = dying  # type: ignore[method-assign]
        copying.LOCAL_PARTS = 1  # type: ignore[misc]
        copy_cache(path, some, selection=LEAN)
        os._exit(1)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


def test_a_killed_copy_of_a_selection_is_resumed(path: Path, lean: Path, tmp_path: Path) -> None:
    some = tmp_path / "some"
    for most in (1, 3, 5):
        assert copy_until(path, some, most) == 9
        assert not (some / layout.INDEX).exists()
        there = {name: digest for name, digest in tiny.digests_of(some).items() if not name.startswith(layout.WORK)}
        assert there.items() <= tiny.digests_of(lean).items()
    copy_cache(path, some, selection=LEAN)
    assert tiny.digests_of(some) == tiny.digests_of(lean)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 12))])
def test_nothing_wrong_is_committed_of_a_selection_whatever_fails(
    path: Path, lean: Path, tmp_path: Path, seed: int
) -> None:
    kinds = [fault for fault in FAULTS if fault != "stall"]
    site = Site(path, due=lambda n: kinds[(n * 7 + seed) % len(kinds)] if n < 60 and (n + seed) % 3 == 0 else None)
    with serving(site) as url:
        for _ in range(20):
            try:
                copy_cache(url, tmp_path / "some", selection=LEAN, retry_policy=HASTY)
                break
            except (CacheDamaged, Unreachable):
                assert not (tmp_path / "some" / layout.INDEX).exists()
    assert tiny.digests_of(tmp_path / "some") == tiny.digests_of(lean)


@pytest.mark.parametrize(
    "selection",
    [
        PartSelection(),
        MIDDLE,
        LEAN,
        PartSelection(parts=Bounds(end=7)),
        PartSelection(parts=Bounds(first=7)),
        PartSelection(split="validation"),
        PartSelection(without=("hidden",)),
        PartSelection(split="train", without=("text",)),
    ],
)
def test_a_selection_is_read_again_from_the_history(selection: PartSelection) -> None:
    assert PartSelection.of(str(selection)) == (None if selection == PartSelection() else selection)
    for other in (f"{selection} ", f"documents 0:7; {selection}", "without", "parts : split train"):
        assert PartSelection.of(other) is None


def test_a_record_without_a_table_is_refused(path: Path, tmp_path: Path) -> None:
    odd = tiny.copy_cache(path, tmp_path / "odd")
    for record in odd.glob("parts/*/part.json"):
        damage.edit_json(record, lambda value: value["tables"].clear())
    damage.reseal(odd)
    with pytest.raises(CacheDamaged, match="ids_by_rank"):
        copy_cache(odd, tmp_path / "some", selection=LEAN)
