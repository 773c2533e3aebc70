"""Rules for starting and resuming a cache: names, versions, other files, parts that lost a sequence."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdpipe.cache import open_cache
from kdpipe.cache.opening import create_cache
from kdpipe.cache.parts.tokenizer_content import tokenizer_content
from kdpipe.cache.verify import verify_cache
from kdpipe.schemas.errors import CacheWriteError, ConfigError
from kdpipe.schemas.manifest import FileRecord, Manifest
from kdpipe.schemas.strict_json import sha256_hex
from support.tiny import SMALL, begin_cache, make_cache, manifest_of, part_of, resume_cache


def changed(manifest: Manifest, **values: object) -> Manifest:
    """A manifest with other values, validated again."""
    return Manifest.model_validate({**dict(manifest), **values})


def test_another_version_of_the_program_can_resume_a_cache(tmp_path: Path) -> None:
    begin_cache(tmp_path / "cache")
    newer = changed(manifest_of(), kdpipe="99.0")
    assert create_cache(tmp_path / "cache", newer).manifest.kdpipe == manifest_of().kdpipe
    assert resume_cache(tmp_path / "cache") == make_cache(tmp_path / "other")


def test_a_tokenizer_may_keep_files_in_a_folder(tmp_path: Path) -> None:
    files = {"tokenizer.json": b"{}", "additional_chat_templates/tools.jinja": b"{{ tools }}"}
    records = {name: FileRecord(bytes=len(data), sha256=sha256_hex(data)) for name, data in files.items()}
    manifest = manifest_of()
    tokenizer = {"files": records, "fingerprint": tokenizer_content(files).fingerprint}
    writer = create_cache(str(tmp_path), changed(manifest, tokenizer=manifest.tokenizer.model_copy(update=tokenizer)))
    writer.publish_tokenizer(files)
    assert (tmp_path / "tokenizer/additional_chat_templates/tools.jinja").read_bytes() == b"{{ tools }}"
    assert not [p for p in verify_cache(tmp_path, "full").problems if p.file.startswith("tokenizer")]


@pytest.mark.parametrize("name", ["README.md", "LICENSE", ".gitattributes", "manifest.sig"])
def test_hub_files_beside_a_cache_are_no_problem_and_change_nothing(tmp_path: Path, name: str) -> None:
    identity = make_cache(tmp_path / "cache")
    (tmp_path / "cache" / name).write_text("hello")
    report = verify_cache(tmp_path / "cache", "full")
    assert report.ok
    assert report.cache_id == identity


def test_a_part_that_lost_a_sequence_is_not_committed(tmp_path: Path) -> None:
    writer = begin_cache(tmp_path / "cache")
    with pytest.raises(CacheWriteError, match="part 0 lacks a sequence that was refused"), writer.part(0) as part:
        for number, (sequence, block) in enumerate(part_of(SMALL, 0)):
            wrong = replace(sequence, texts=["\ud800"] * len(sequence.texts or [])) if number == 1 else sequence
            try:
                part.add(wrong, block)
            except CacheWriteError as error:
                assert "UTF-8" in error.message
    assert writer.committed() == []


def test_a_part_beyond_the_plan_is_refused(tmp_path: Path) -> None:
    writer = begin_cache(tmp_path / "cache")
    with pytest.raises(ConfigError, match="the plan has 4 parts, there is no part 99"), writer.part(99):
        pass


def test_what_the_cache_would_leave_out_is_refused(tmp_path: Path) -> None:
    writer = begin_cache(tmp_path / "cache")
    sequence, block = part_of(SMALL, 0)[0]
    n = len(sequence.tokens)
    for pair, message in (
        ((replace(sequence, columns={**sequence.columns, "lang": ["en"]}), block), "source column 'lang'"),
        ((sequence, replace(block, log_z={**block.log_z, 3.0: np.zeros(n, np.float32)})), "log_z at temperature 3.0"),
        (
            (sequence, replace(block, hidden={**block.hidden, 9: np.zeros((n, 8), np.float32)})),
            "hidden layer 9",
        ),
    ):
        with pytest.raises(CacheWriteError, match=message), writer.part(0) as part:
            part.add(*pair)


def test_a_teacher_with_top_predictions_only_gives_no_scalars_of_the_whole(tmp_path: Path) -> None:
    manifest = manifest_of(replace(SMALL, kind="topk", top_k=8, hidden=False))
    assert manifest.teacher is not None
    served = manifest.teacher.model_copy(update={"full_distribution": False})
    with pytest.raises(ValueError, match="entropy and temperatures need a teacher whose full distribution was seen"):
        changed(manifest, teacher=served)
    draws = manifest_of(replace(SMALL, temperatures=(), hidden=False))
    targets = draws.targets.model_copy(update={"entropy": False})
    with pytest.raises(ValueError, match="kind threshold need a teacher whose full distribution"):
        changed(draws, teacher=served, targets=targets)


def test_a_layer_that_the_teacher_lacks_is_refused() -> None:
    manifest = manifest_of()
    assert manifest.teacher is not None
    small = manifest.teacher.model_copy(update={"n_layers": 1})
    with pytest.raises(ValueError, match="hidden names layer 4, the teacher has 1"):
        changed(manifest, teacher=small)


def test_an_unknown_table_is_refused(tmp_path: Path) -> None:
    make_cache(tmp_path / "cache")
    with pytest.raises(ConfigError, match="there is no table 'head'"):
        open_cache(tmp_path / "cache").table("head")
