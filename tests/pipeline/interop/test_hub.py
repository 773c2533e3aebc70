"""Data sets of the hub as a source, with local folders in the place of the network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from kdpipe.cache.opening import open_cache
from kdpipe.pipeline.documents.hub_datasets import LISTS_BATCH
from kdpipe.pipeline.interop.source_files import source_files
from kdpipe.schemas.errors import ConfigError
from support.interop_sources import Row, imported, random_rows, word_tokenizer, write_rows

N_IDS, K = 30, 4
NAME = "someone/top-k"
ROWS = random_rows(3, N_IDS, K, range(4, 4 + 2 * LISTS_BATCH + 3))
Requests = list[tuple[str, str | None, str]]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(word_tokenizer(tmp_path_factory.mktemp("tokenizers") / "words", N_IDS))


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Row], str], Requests]:
    """Serve rows as a Hub data set, and record the requests."""
    plain, requests = datasets.load_dataset, Requests()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    datasets.disable_progress_bars()

    def serve(rows: list[Row], ending: str = ".parquet") -> Requests:
        file = write_rows(tmp_path / f"far{ending}", rows)

        def load(path: str, subset: str | None, split: str) -> Any:
            requests.append((path, subset, split))
            kind = "parquet" if ending == ".parquet" else "json"
            return plain(kind, data_files={split: str(file)}, split=split)

        monkeypatch.setattr(datasets, "load_dataset", load)
        return requests

    return serve


def settings(source: str, tokenizer: str, out: Path, **more: Any) -> dict[str, Any]:
    return {"source_format": "topk", "source": source, "tokenizer": tokenizer, "out": str(out), **more}


@pytest.mark.parametrize("ending", [".parquet", ".jsonl"])
def test_a_data_set_of_the_hub_becomes_the_cache_that_its_files_do(
    ending: str, served: Callable[..., Requests], tokenizer: str, tmp_path: Path
) -> None:
    requests = served(ROWS, ending)
    imported(**settings(f"{NAME}:small", tokenizer, tmp_path / "far", data_split="test", pack=False))
    imported(**settings(str(tmp_path / f"far{ending}"), tokenizer, tmp_path / "near", pack=False))
    assert requests == [(NAME, "small", "test")]
    far, near = open_cache(tmp_path / "far"), open_cache(tmp_path / "near")
    assert far.manifest.data.source == f"topk: {NAME}:small"
    assert far.manifest.data.fingerprint == near.manifest.data.fingerprint
    assert len(far) == len(near) == len(ROWS)
    for row, one, other in zip(ROWS, far, near, strict=True):
        assert one.tokens.tolist() == row["tokens"]
        for name in ("ids", "logprobs", "count", "loss_mask"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), name


def test_the_default_split_is_train(served: Callable[..., Requests]) -> None:
    requests = served(ROWS)
    (file,) = source_files(NAME, None, 1 << 20)
    assert requests == [(NAME, None, "train")]
    assert file.name == f"{NAME}[train]"


def test_rows_are_read_again_by_their_positions(served: Callable[..., Requests]) -> None:
    served(ROWS)
    (file,) = source_files(NAME, None, 1 << 20)
    file.wanted = ["tokens", "ids"]
    places = [0, 1, LISTS_BATCH, len(ROWS) - 1]
    found = list(file.columns_at(places))
    assert [each["tokens"].tolist() for each in found] == [ROWS[place]["tokens"] for place in places]
    assert [each["ids"].counts.tolist() for each in found] == [[K] * len(ROWS[place]["ids"]) for place in places]
    assert [row.position for row in file.rows()] == list(range(len(ROWS)))


def test_a_local_path_is_not_looked_up_on_the_hub(
    served: Callable[..., Requests], tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = served(ROWS)
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir(parents=True)
    for split in ("train", "test"):
        write_rows(tmp_path / NAME / f"{split}.parquet", ROWS[: 2 if split == "test" else 3])
    assert imported(**settings(NAME, tokenizer, tmp_path / "cache", data_split="test")).documents == 2
    with pytest.raises(ConfigError, match="someone/else") as refused:
        source_files("someone/else", None, 1 << 20)
    assert "OWNER/NAME" in str(refused.value.hint)
    assert requests == []


def test_a_data_set_of_other_columns_is_refused(
    served: Callable[..., Requests], tokenizer: str, tmp_path: Path
) -> None:
    served([{"tokens": [1, 2], "ids": ["a", "b"], "logprobs": [[-1.0], [-1.0]]}])
    with pytest.raises(ConfigError, match=r"someone/top-k\[train\].*ids.*string"):
        imported(**settings(NAME, tokenizer, tmp_path / "cache"))
    served([{"text": "words"}])
    with pytest.raises(ConfigError, match="tried tokens, input_ids"):
        imported(**settings(NAME, tokenizer, tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


def test_a_data_set_that_cannot_be_loaded_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach it\nand more")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(ConfigError, match=r"someone/top-k.*: Couldn't reach it"):
        source_files(NAME, None, 1 << 20)
