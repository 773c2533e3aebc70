"""A missing or tiny validation split is reported before the teacher runs, with the option to set."""

import re
from pathlib import Path
from typing import Any

import pytest

from kdpipe.pipeline.capture.inputs import read_inputs
from support.corpora import CHATML, TEXTS, small_tokenizer, write_jsonl
from support.stage_one import RecordingProgress, settings_for


def heard(folder: Path, texts: list[str], **data: Any) -> RecordingProgress:
    """The messages about some documents."""
    (folder / "teacher").mkdir()
    small_tokenizer(folder / "teacher")
    write_jsonl(folder / "corpus.jsonl", [{"text": text} for text in texts])
    progress = RecordingProgress()
    read_inputs(settings_for(folder, data=data, teacher={"tokenizer": str(folder / "teacher")}), progress)
    return progress


def test_one_document_has_no_validation_split_and_a_warning(tmp_path: Path) -> None:
    progress = heard(tmp_path, TEXTS[:1], val_fraction=0.02)
    (warning,) = progress.warnings
    assert "no validation split" in warning and "--val-data" in warning


def test_a_tiny_split_is_warned_of_with_a_fraction_that_is_enough(tmp_path: Path) -> None:
    texts = [f"{text} {n}" for n in range(20) for text in TEXTS[:20]]
    progress = heard(tmp_path, texts, val_fraction=0.005)
    (warning,) = progress.warnings
    fraction = float(re.findall(r"--val-fraction ([0-9.]+)", warning)[0])
    assert 20 / len(texts) <= fraction <= 0.3


@pytest.mark.parametrize("n_books", [1, 3])
def test_a_small_split_of_ranges_is_warned_of_with_a_fraction_that_is_enough(n_books: int, tmp_path: Path) -> None:
    whole = "\n\n".join(TEXTS)
    books = [whole[i * len(whole) // n_books : (i + 1) * len(whole) // n_books] for i in range(n_books)]
    (tmp_path / "few").mkdir()
    (warning,) = heard(tmp_path / "few", books, val_fraction=0.02).warnings
    fraction = float(re.findall(r"--val-fraction ([0-9.]+)", warning)[0])
    (tmp_path / "enough").mkdir()
    assert heard(tmp_path / "enough", books, val_fraction=fraction).warnings == []


def test_long_conversations_are_not_cut_and_a_warning_names_them(tmp_path: Path) -> None:
    small_tokenizer(tmp_path / "teacher", chat_template=CHATML)
    turns = [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": "\n\n".join(TEXTS)}]
    write_jsonl(tmp_path / "corpus.jsonl", [{"messages": turns}])
    progress = RecordingProgress()
    read_inputs(settings_for(tmp_path, data={"val_fraction": 0.02}), progress)
    (warning,) = progress.warnings
    assert "no validation split" in warning and "conversations" in warning


def test_a_tiny_corpus_needs_other_validation_documents(tmp_path: Path) -> None:
    (warning,) = heard(tmp_path, TEXTS[:20], val_fraction=0.1).warnings
    assert "--val-data" in warning and "--val-fraction" not in warning


@pytest.mark.parametrize("texts", [TEXTS[:1], TEXTS[:20]], ids=["one", "some"])
def test_no_split_that_is_wanted_is_a_note(texts: list[str], tmp_path: Path) -> None:
    progress = heard(tmp_path, texts, val_fraction=0.0)
    assert progress.warnings == []
    assert any("--val-fraction 0" in line for line in progress.messages)


def test_a_large_enough_split_has_no_warning(tmp_path: Path) -> None:
    texts = [f"{text} {n}" for n in range(20) for text in TEXTS[:20]]
    assert heard(tmp_path, texts, val_fraction=0.2).warnings == []
