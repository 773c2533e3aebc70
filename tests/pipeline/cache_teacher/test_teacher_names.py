"""The teacher's name: in the manifest and in the student's card, and never as its identity."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kdpipe.cache.opening import open_cache
from kdpipe.cache.reshape.merge import merge
from kdpipe.schemas.errors import ConfigError, Incompatible
from kdpipe.schemas.manifest import TeacherRecord
from support import stage_two
from support.corpora import TEXTS, write_jsonl
from support.reshaped import problems_in
from support.stage_one import make_inputs, run, settings_for


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One teacher in three folders, a cache by each of two, and documents of their own."""
    path = tmp_path_factory.mktemp("names")
    make_inputs(path, 20)
    (path / "runs" / "large").mkdir(parents=True)
    shutil.copytree(path / "teacher", path / "runs" / "large" / "final")
    shutil.copytree(path / "teacher", path / "copy")
    write_jsonl(path / "more.jsonl", [{"text": text, "category": "odd"} for text in TEXTS[20:30]])
    run(by(path, "runs/large/final", "cache"))
    run(by(path, "copy", "other", {"license": "mit"}, path="more.jsonl"))
    return path


def by(
    folder: Path,
    teacher: str,
    out: str,
    messages: dict[str, Any] | None = None,
    path: str = "corpus.jsonl",
    **changes: Any,
) -> Any:
    """Settings with a teacher in some folder, and its messages."""
    return settings_for(
        folder,
        out,
        teacher={"name": str(folder / teacher), **(messages or {})},
        data={"path": str(folder / path)},
        **changes,
    )


def teacher_of(path: Path) -> TeacherRecord:
    found = open_cache(path).manifest.teacher
    assert found is not None
    return found


def test_a_teacher_in_an_output_folder_is_called_by_its_run(folder: Path) -> None:
    assert teacher_of(folder / "cache").name == "large"


def test_name_and_license_are_stated_as_given(folder: Path, tmp_path: Path) -> None:
    run(by(folder, "runs/large/final", str(tmp_path / "c"), {"display_name": "org/Large", "license": "apache-2.0"}))
    found = teacher_of(tmp_path / "c")
    assert (found.name, found.license, found.hub_id) == ("org/Large", "apache-2.0", None)


@pytest.mark.slow
def test_a_card_names_the_teacher_and_its_license(folder: Path, tmp_path: Path) -> None:
    for given, name, license in (
        ({"display_name": "org/Large", "license": "apache-2.0"}, "org/Large", "apache-2.0"),
        ({"display_name": "final"}, "an unnamed teacher", "unknown"),
    ):
        out = str(tmp_path / given["display_name"].replace("/", "-"))
        run(by(folder, "runs/large/final", out, given))
        stage_two.run(stage_two.settings_for(folder, f"{out}-run", out, run={"max_steps": 1}))
        card = Path(f"{out}-run", "final", "README.md").read_text()
        assert f"from cached predictions of {name}" in card
        assert f": {license}." in card


def test_a_copy_under_another_name_resumes_and_the_manifest_stays(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "c"
    shutil.copytree(folder / "cache", out)
    before = (out / "manifest.json").read_bytes()
    (out / "index.parquet").unlink()
    shutil.rmtree(out / "parts" / "00000")
    report = run(by(folder, "copy", str(out)))
    assert (report.complete, report.parts.made) == (True, 1)
    assert report.cache_id == open_cache(folder / "cache").cache_id
    assert (out / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("messages", [{"display_name": "other"}, {"license": "mit"}])
@pytest.mark.parametrize("dry_run", [False, True])
def test_another_name_or_license_for_a_begun_cache_is_refused(
    folder: Path, messages: dict[str, str], dry_run: bool
) -> None:
    before = (folder / "cache" / "manifest.json").read_bytes()
    with pytest.raises(ConfigError) as refusal:
        run(by(folder, "runs/large/final", "cache", messages), dry_run=dry_run)
    assert next(iter(messages.values())) in refusal.value.message
    assert (folder / "cache" / "manifest.json").read_bytes() == before


def test_caches_of_one_teacher_merge_whatever_it_is_called(folder: Path, tmp_path: Path) -> None:
    merge([str(folder / "cache"), str(folder / "other")], str(tmp_path / "c"))
    assert problems_in(tmp_path / "c") == []
    # The license that one of them states holds for both.
    assert (teacher_of(tmp_path / "c").name, teacher_of(tmp_path / "c").license) == ("large", "mit")


def test_an_extended_cache_takes_the_name_that_is_given(folder: Path, tmp_path: Path) -> None:
    settings = by(folder, "copy", str(tmp_path / "c"), {"display_name": "org/Large"}, path="more.jsonl")
    report = run(settings.model_copy(update={"extend": str(folder / "cache")}))
    assert report.complete and problems_in(tmp_path / "c") == []
    assert (teacher_of(tmp_path / "c").name, teacher_of(tmp_path / "c").license) == ("org/Large", None)


def test_a_teacher_of_other_weights_does_not_pass_under_the_same_name(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "in"
    other.mkdir()
    shutil.copytree(folder / "teacher", other / "teacher")
    (other / "teacher" / "model.safetensors").write_bytes(
        changed((other / "teacher" / "model.safetensors").read_bytes())
    )
    shutil.copy(folder / "more.jsonl", other / "more.jsonl")
    run(by(other, "teacher", str(tmp_path / "c"), {"display_name": "large"}, path="more.jsonl"))
    with pytest.raises(Incompatible, match="weights"):
        merge([str(folder / "cache"), str(tmp_path / "c")], str(tmp_path / "d"))


def changed(weights: bytes) -> bytes:
    """The same file with another last byte."""
    return weights[:-1] + bytes([weights[-1] ^ 1])


def test_two_hub_ids_are_two_teachers_and_a_given_name_is_not_an_id() -> None:
    plain = TeacherRecord(name="org/large", revision="abc")
    named = TeacherRecord(name="Large", revision="abc", hub_id="org/large")
    assert plain.identity == named.identity != TeacherRecord(name="org/small", revision="abc").identity
    assert "hub_id" not in json.loads(plain.to_json()) and "hub_id" in json.loads(named.to_json())
    assert plain.described_as(named).name == "Large"
