"""`--tokenizer` beside the teacher's own: equal by content, or refused with what differs, or allowed and recorded."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kdpipe.cache import layout
from kdpipe.cache.opening import open_cache
from kdpipe.cache.parts.tokenizer_content import tokenizer_content
from kdpipe.cache.reshape.merge import merge
from kdpipe.cache.verify import verify_cache
from kdpipe.cli import main
from kdpipe.pipeline.students.cache_tokenizer import read_cache_tokenizer
from kdpipe.pipeline.tokenizers.tokenizer_difference import FOREIGN_NOTE
from kdpipe.pipeline.verify_against import verify_against
from kdpipe.schemas.errors import CacheDamaged
from kdpipe.schemas.progress import SilentProgress
from kdpipe.schemas.strict_json import canonical, sha256_hex
from support.corpora import TEXTS, small_tokenizer, write_jsonl
from support.damage import reseal
from support.stage_one import VOCABULARY, RecordingProgress, make_inputs, run, settings_for


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher with its tokenizer, documents, a cache, and tokenizers of other vocabularies."""
    folder = tmp_path_factory.mktemp("foreign")
    make_inputs(folder, n_documents=6)
    small_tokenizer(folder / "smaller", vocabulary=400)
    same = small_tokenizer(folder / "same", vocabulary=VOCABULARY)
    edit(same / "tokenizer.json", respelled)
    swapped = small_tokenizer(folder / "swapped", vocabulary=VOCABULARY)
    edit(swapped / "tokenizer.json", swap)
    run(settings_for(folder))
    return folder


def edit(file: Path, change: Any) -> None:
    """Change a JSON file in place."""
    state = json.loads(file.read_text(encoding="utf-8"))
    change(state)
    file.write_text(json.dumps(state), encoding="utf-8")


def respelled(state: dict[str, Any]) -> None:
    """Change nothing that turns text into ids."""
    state["padding"] = {
        "strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    }  # fmt: skip
    state["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    state["added_tokens"].reverse()
    state["model"]["merges"] = [" ".join(pair) for pair in state["model"]["merges"]]


def swap(state: dict[str, Any]) -> None:
    """Exchange two ids."""
    vocabulary = state["model"]["vocab"]
    first, second = (next(text for text, number in vocabulary.items() if number == n) for n in (300, 400))
    vocabulary[first], vocabulary[second] = 400, 300


def words(folder: Path, command: str, tokenizer: str, *more: str) -> list[str]:
    """A command of stage one with another tokenizer."""
    given = ["--teacher", str(folder / "teacher"), "--tokenizer", str(folder / tokenizer)]
    return [command, *given, "--data", str(folder / "corpus.jsonl"), "--devices", "cpu", "--seq-len", "96", *more]


@pytest.mark.parametrize("command", ["cache-teacher", "plan"])
@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [("smaller", "400 ids instead of 512"), ("swapped", "2 ids have other tokens, the first is 300")],
)
def test_another_tokenizer_is_refused_with_the_first_difference(
    folder: Path, tmp_path: Path, command: str, tokenizer: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "cache")] if command == "cache-teacher" else []
    assert main.run([*words(folder, command, tokenizer), *out]) == 4
    shown = capsys.readouterr().err
    assert message in shown and "--allow-foreign-tokenizer" in shown
    assert not (tmp_path / "cache").exists()


def test_a_tokenizer_that_is_only_stored_otherwise_is_the_same(folder: Path, tmp_path: Path) -> None:
    progress = RecordingProgress()
    settings = settings_for(folder, teacher={"tokenizer": str(folder / "same"), "allow_foreign_tokenizer": True})
    run(settings.model_copy(update={"out": str(tmp_path / "cache")}), progress)
    assert [line for line in progress.warnings if "--allow-foreign-tokenizer is not needed" in line]
    manifests = [open_cache(path).manifest for path in (folder / "cache", tmp_path / "cache")]
    assert manifests[0].tokenizer.fingerprint == manifests[1].tokenizer.fingerprint
    assert manifests[1].teacher is not None and manifests[1].teacher.notes == ()
    assert verify_cache(tmp_path / "cache", "full").ok


@pytest.mark.slow
@pytest.mark.parametrize("what", ["none", "broken"])
def test_a_teacher_without_a_tokenizer_needs_one_and_a_broken_one_cannot_be_compared(
    folder: Path, tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder / "teacher", tmp_path / "teacher")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "teacher" / name).unlink()
    if what == "broken":
        (tmp_path / "teacher" / "tokenizer.json").write_text("{")
    given = words(folder, "plan", "same")
    given[2] = str(tmp_path / "teacher")
    assert main.run(given) == (0 if what == "none" else 2)
    if what == "broken":
        assert "cannot be compared with the tokenizer of" in capsys.readouterr().err
    assert main.run([*given, "--allow-foreign-tokenizer"]) == 0
    assert ("--allow-foreign-tokenizer is not needed" in capsys.readouterr().err) is (what == "none")


@pytest.mark.slow
def test_an_allowed_difference_is_reported_and_recorded(folder: Path, tmp_path: Path) -> None:
    progress = RecordingProgress()
    teacher = {"tokenizer": str(folder / "swapped"), "allow_foreign_tokenizer": True}
    run(settings_for(folder, teacher=teacher).model_copy(update={"out": str(tmp_path / "cache")}), progress)
    assert any("2 ids have other tokens" in line for line in progress.warnings)
    stated = open_cache(tmp_path / "cache").manifest.teacher
    assert stated is not None and stated.notes == (FOREIGN_NOTE,)
    assert verify_cache(tmp_path / "cache", "full").ok
    assert verify_against(str(tmp_path / "cache"), str(folder / "teacher"), 4, SilentProgress()).ok


def test_permission_without_a_tokenizer_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["plan", "--teacher", str(folder / "teacher"), "--tokens", "1000", "--allow-foreign-tokenizer"]
    assert main.run(given) == 2
    assert "--allow-foreign-tokenizer needs --tokenizer" in capsys.readouterr().err


@pytest.fixture
def forged(folder: Path, tmp_path: Path) -> Path:
    """A cache whose tokenizer has two ids exchanged: every digest is right, and the fingerprint is the true one's."""
    path = tmp_path / "forged"
    shutil.copytree(folder / "cache", path)
    edit(path / "tokenizer/tokenizer.json", swap)
    data = (path / "tokenizer/tokenizer.json").read_bytes()
    manifest = json.loads((path / layout.MANIFEST).read_bytes())
    manifest["tokenizer"]["files"]["tokenizer.json"] = {"bytes": len(data), "sha256": sha256_hex(data)}
    (path / layout.MANIFEST).write_bytes(canonical(manifest))
    reseal(path)
    return path


@pytest.mark.slow
def test_a_forged_tokenizer_is_found_by_every_byte_and_by_every_use(folder: Path, forged: Path, tmp_path: Path) -> None:
    assert verify_cache(forged, "fast").ok
    for level in ("full", "deep"):
        problems = verify_cache(forged, level).problems  # type: ignore[arg-type]
        assert [problem.file for problem in problems] == ["tokenizer/tokenizer.json"]
        assert "it is another tokenizer than the manifest states" in problems[0].what
    report = verify_against(str(forged), str(folder / "teacher"), 4, SilentProgress())
    assert not report.ok and [problem.file for problem in report.problems] == ["tokenizer/tokenizer.json"]
    with pytest.raises(CacheDamaged, match=r"tokenizer.*manifest"):
        read_cache_tokenizer(open_cache(forged))
    for more in (["--verify", "never"], []):
        given = ["train", "--from-cache", str(forged), "--student", "tiny", "--out", str(tmp_path / "run"), *more]
        assert main.run([*given, "--max-steps", "1"]) == 3


@pytest.mark.slow
def test_a_tokenizer_forged_with_its_fingerprint_is_not_the_teachers(folder: Path, forged: Path) -> None:
    files = {file.name: file.read_bytes() for file in (forged / layout.TOKENIZER).iterdir()}
    manifest = json.loads((forged / layout.MANIFEST).read_bytes())
    manifest["tokenizer"]["fingerprint"] = tokenizer_content(files).fingerprint
    (forged / layout.MANIFEST).write_bytes(canonical(manifest))
    reseal(forged)
    assert verify_cache(forged, "deep").ok
    report = verify_against(str(forged), str(folder / "teacher"), 4, SilentProgress())
    assert not report.ok
    assert "not the teacher's tokenizer: 2 ids have other tokens" in report.problems[0].what


def test_files_that_are_loaded_as_another_tokenizer_are_refused(folder: Path, tmp_path: Path) -> None:
    """tokenizer.json is the true one; another file makes transformers add ids."""
    path = tmp_path / "forged"
    shutil.copytree(folder / "cache", path)
    config = path / "tokenizer/tokenizer_config.json"
    edit(config, lambda state: state.update(tokenizer_class="BertTokenizer"))
    data = config.read_bytes()
    manifest = json.loads((path / layout.MANIFEST).read_bytes())
    manifest["tokenizer"]["files"]["tokenizer_config.json"] = {"bytes": len(data), "sha256": sha256_hex(data)}
    (path / layout.MANIFEST).write_bytes(canonical(manifest))
    reseal(path)
    with pytest.raises(CacheDamaged, match=r"transformers.*tokenizer.*516 ids.*files.*cache.*512"):
        read_cache_tokenizer(open_cache(path))


def test_a_forged_tokenizer_is_not_merged_with_the_true_one(folder: Path, forged: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "more.jsonl", [{"text": text, "category": "odd"} for text in TEXTS[100:106]])
    settings = settings_for(folder, data={"path": str(tmp_path / "more.jsonl")})
    run(settings.model_copy(update={"out": str(tmp_path / "true")}))
    for order in ((forged, tmp_path / "true"), (tmp_path / "true", forged)):
        with pytest.raises(CacheDamaged, match=r"tokenizer.*manifest"):
            merge([str(path) for path in order], str(tmp_path / "merged"))
    assert not (tmp_path / "merged").exists()
    assert merge([str(folder / "cache"), str(tmp_path / "true")], str(tmp_path / "merged")).parts.made > 1
