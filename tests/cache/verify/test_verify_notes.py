"""Notes of verification, which fail nothing, and how an unfinished cache is finished."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdpipe.cache import layout
from kdpipe.cache.verify import verify_cache
from kdpipe.cache.verify.fast import how_to_finish
from kdpipe.cli.main import run
from kdpipe.schemas.manifest import Origin
from support import tiny
from support.damage import edit_json, reseal


@pytest.fixture(autouse=True)
def unsynced() -> Iterator[None]:
    with tiny.unsynced():
        yield


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache with a journal."""
    path = tmp_path / "cache"
    writer = tiny.begin_cache(path)
    for number in writer.missing():
        tiny.write_part(writer, number)
        writer.write_journal(number, {"host": "here", "seconds": 1.5})
    writer.seal()
    return path


DAMAGES = {
    "half": b'{"host":"he',
    "empty": b"",
    "spaced": b'{"host": "here","seconds":1.5}\n',
    "list": b"[1]\n",
    "zeros": bytes(40),
    "large": b" " * ((1 << 20) + 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_in_the_journal_is_a_note_and_fails_nothing(
    cache: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (cache / layout.journal_file(1)).write_bytes(DAMAGES[damage])
    for level in ("full", "deep"):
        assert run(["cache", "verify", str(cache), "--level", level, "--json"]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert (answer["ok"], answer["problems"]) == (True, [])
        assert [(note["part"], note["file"], set(note)) for note in answer["notes"]] == [
            (1, "journal/00001.json", {"part", "file", "what"})
        ]
    assert run(["cache", "verify", str(cache)]) == 0
    assert "journal/00001.json" in capsys.readouterr().out
    assert run(["cache", "verify", str(cache), "--level", "fast", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == []


def test_a_good_journal_and_none_give_no_note(cache: Path) -> None:
    assert verify_cache(cache, "full").notes == ()
    for file in (cache / layout.JOURNAL).iterdir():
        file.unlink()
    assert verify_cache(cache, "full").notes == ()


OTHERS = {
    "another part": {"part": 2},
    "not a number": {"part": True},
    "text": {"part": "1\x1b[2J"},
    "another record": {"part_sha256": "0" * 64},
}


@pytest.mark.parametrize("others", OTHERS)
def test_an_entry_of_another_part_is_a_note(cache: Path, others: str) -> None:
    edit_json(cache / layout.journal_file(1), lambda facts: facts.update(OTHERS[others]))
    report = verify_cache(cache, "full")
    assert report.ok and [(note.part, note.file) for note in report.notes] == [(1, "journal/00001.json")]
    assert report.notes[0].what.isprintable()


def test_entries_of_two_parts_that_were_exchanged_are_two_notes(cache: Path) -> None:
    tiny.swap_files(cache / layout.journal_file(1), cache / layout.journal_file(3))
    assert [note.part for note in verify_cache(cache, "full").notes] == [1, 3]


def test_an_entry_that_is_missing_is_a_note_where_others_have_one(cache: Path) -> None:
    for number in (0, 1, 3):
        (cache / layout.journal_file(number)).unlink()
    report = verify_cache(cache, "full")
    assert report.ok
    assert [(note.part, note.file) for note in report.notes] == [(0, "journal/00000.json"), (3, "journal/00003.json")]
    assert "next 1 parts" in report.notes[0].what


@pytest.mark.parametrize("name", ["00004.json", "0000001.json"])
def test_an_entry_of_no_part_is_a_note(cache: Path, name: str) -> None:
    (cache / layout.JOURNAL / name).write_bytes((cache / layout.journal_file(1)).read_bytes())
    report = verify_cache(cache, "full")
    assert report.ok and [note.file for note in report.notes] == [f"journal/{name}"]


def test_entries_of_earlier_versions_name_no_part_and_pass(cache: Path) -> None:
    for number in range(4):
        edit_json(cache / layout.journal_file(number), lambda facts: (facts.pop("part"), facts.pop("part_sha256")))
    assert verify_cache(cache, "full").notes == ()


def test_a_cache_made_from_others_need_not_have_entries(cache: Path) -> None:
    (cache / layout.journal_file(2)).unlink()
    extended = {"action": "extend", "caches": ["0" * 64], "note": ""}
    edit_json(cache / layout.MANIFEST, lambda manifest: manifest["history"].append(extended))
    reseal(cache)
    for number in (0, 1, 3):
        edit_json(cache / layout.journal_file(number), lambda facts: facts.pop("part_sha256"))
    assert verify_cache(cache, "full").notes == ()


def test_a_note_is_listed_beside_the_problems_of_the_same_cache(cache: Path) -> None:
    (cache / layout.journal_file(1)).write_bytes(b"")
    tiny.flip_bit(cache / "parts/00002/sequences.arrow", 1000)
    report = verify_cache(cache, "full")
    assert [problem.part for problem in report.problems] == [2]
    assert [note.part for note in report.notes] == [1]


def test_an_unfinished_cache_is_finished_by_the_command_that_began_it(cache: Path, tmp_path: Path) -> None:
    (cache / layout.INDEX).unlink()
    index = verify_cache(cache, "fast").problems
    assert [problem.file for problem in index] == [layout.INDEX]
    for number in (1, 2):
        (cache / layout.part_dir(number)).rename(tmp_path / str(number))
    problems = verify_cache(cache, "fast").problems
    assert [problem.file for problem in problems] == [layout.INDEX, "parts/00001"]
    for problem in (*index, *problems):
        assert "kdpipe cache-teacher again" in problem.do and "--repair-from" not in problem.do


@pytest.mark.parametrize(
    ("action", "command"),
    [("merge", "cache merge"), ("import", "cache import"), ("copy", "cache copy"), ("extend", "cache-teacher")],
)
def test_a_cache_made_of_others_names_its_own_command(action: str, command: str) -> None:
    origin = Origin.model_validate({"action": action, "caches": ()})
    manifest = tiny.manifest_of().model_copy(update={"history": (origin,)})
    assert f"run kdpipe {command} again" in how_to_finish(manifest)


def test_parts_that_a_finished_cache_lacks_are_copied_again(cache: Path, tmp_path: Path) -> None:
    (cache / layout.part_dir(1)).rename(tmp_path / "1")
    problems = verify_cache(cache, "fast").problems
    assert [problem.file for problem in problems] == ["parts/00001"]
    assert "--repair-from" in problems[0].do and "cache-teacher" not in problems[0].do
