"""Data sets of the hub, with a folder in the place of the network."""

from pathlib import Path
from typing import Any

import datasets
import pytest

from kdpipe.pipeline.documents import hub_datasets as hub
from kdpipe.pipeline.documents.data_sources import DataQuery, find_files
from kdpipe.pipeline.documents.row_files import Limits
from kdpipe.schemas.errors import ConfigError
from support.corpora import text_rows, write_jsonl

LIMITS = Limits(document_bytes=10, row_bytes=10)


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> hub.HubRows:
    folder = tmp_path / "name"
    write_jsonl(folder / "train.jsonl", text_rows(600))
    write_jsonl(folder / "validation.jsonl", text_rows(3))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    return hub.HubRows(str(folder), "train")


def test_a_data_set_is_read_like_a_file_and_writes_nothing_next_to_it(rows: hub.HubRows, tmp_path: Path) -> None:
    wanted = text_rows(600)
    found = list(rows.rows())
    assert [row.columns for row in found] == wanted
    assert [row.position for row in found] == list(range(600))
    assert list(rows.columns_at([0, 5, 599])) == [wanted[i] for i in (0, 5, 599)]
    assert rows.name.endswith("name[train]")
    rows.wanted = {"language", "missing"}
    assert next(iter(rows.rows())).columns == next(rows.columns_at([0])) == {"language": "en"}
    assert sorted(path.name for path in (tmp_path / "name").iterdir()) == ["train.jsonl", "validation.jsonl"]


def test_a_name_that_is_not_a_path_is_looked_up_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[tuple[Any, ...]] = []

    def load(path: str, subset: str | None, split: str) -> list[dict[str, Any]]:
        requests.append((path, subset, split))
        return []

    monkeypatch.setattr(datasets, "load_dataset", load)
    find_files("someone/texts", DataQuery(), LIMITS)
    find_files("someone/texts:en", DataQuery(split="test"), LIMITS)
    find_files("wikitext", DataQuery(hub_split="validation"), LIMITS)
    assert requests == [
        ("someone/texts", None, "train"),
        ("someone/texts", "en", "test"),
        ("wikitext", None, "validation"),
    ]


def test_a_data_set_that_cannot_be_loaded_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach it\nand more")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    named = "someone/gone .*: Couldn't reach it"
    with pytest.raises(ConfigError, match=named) as caught:
        find_files("someone/gone", DataQuery(), LIMITS)
    assert "--data-split" in str(caught.value.hint)
