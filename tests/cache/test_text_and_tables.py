"""A cache for people: its tokenizer, decoded text, pandas, and short representations."""

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kdpipe.cache import Cache, open_cache
from kdpipe.schemas.errors import ConfigError, UsageError
from support.source import ROOT
from support.stage_one import make_inputs, run, settings_for
from support.tiny import make_cache


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    folder = tmp_path_factory.mktemp("text")
    make_inputs(folder, n_documents=6)
    run(settings_for(folder, data={"val_fraction": 0.3}))
    return open_cache(folder / "cache")


def test_rows_have_the_text_of_their_tokens(cache: Cache) -> None:
    rows = cache[0]
    assert rows.text == cache.tokenizer.decode(rows.tokens.tolist())
    assert len(rows.texts) == len(rows.document_starts) and "".join(rows.texts) == rows.text
    assert cache.tokenizer is cache.tokenizer
    assert len(cache.tokenizer) == cache.manifest.vocabulary_size


def test_rows_lose_only_their_text_when_they_are_pickled(cache: Cache) -> None:
    rows = cache[0]
    copied = copy.copy(rows)  # copies as a pickle does
    assert np.array_equal(copied.ids, rows.ids) and copied.log_z.keys() == rows.log_z.keys()
    with pytest.raises(UsageError):
        _ = copied.text


def test_a_cache_without_tokenizer_has_no_text(tmp_path: Path) -> None:
    make_cache(tmp_path / "cache")
    cache = open_cache(tmp_path / "cache")
    with pytest.raises(UsageError) as caught:
        _ = cache[0].text
    assert str(tmp_path) in caught.value.message
    assert "text" not in cache.to_pandas(limit=1).columns


def test_text_needs_no_torch(cache: Cache) -> None:
    code = "import sys, kdpipe; c = kdpipe.open_cache(sys.argv[1]); c[0].text; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, cache.url], cwd=ROOT, text=True, capture_output=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_table_has_a_line_per_row(cache: Cache) -> None:
    frame = cache.to_pandas(limit=None)
    assert len(frame) == cache.lengths().sum()
    rows = cache[1]
    second = frame[frame["sequence"] == 1]
    assert second["token"].tolist() == rows.tokens.tolist()
    assert "".join(second["text"]) == rows.text
    assert np.array_equal(np.concatenate(second["ids"].tolist()), rows.ids)
    assert np.array_equal(second["entropy"].to_numpy(), rows.entropy, equal_nan=True)
    assert set(second["document"]) == set(rows.documents.tolist())


def test_a_table_has_the_chosen_columns_split_and_number_of_rows(cache: Cache) -> None:
    frame = cache.to_pandas(["token", "entropy"], split="validation", limit=3)
    assert list(frame.columns) == ["token", "entropy"] and len(frame) == 3
    assert frame["token"].tolist() == cache.split("validation")[0].tokens[:3].tolist()
    assert len(cache.to_pandas(limit=len(cache[0]) + 1)) == len(cache[0]) + 1
    with pytest.raises(ConfigError) as caught:
        cache.to_pandas(["entrop"])
    assert caught.value.nearest == "entropy"
    with pytest.raises(ConfigError):
        cache.to_pandas(limit=0)


def test_a_table_without_pandas_names_the_extra(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError) as caught:
        cache.to_pandas(limit=1)
    assert "kdpipe[pandas]" in str(caught.value.hint)


def test_everything_is_shown_in_one_line(cache: Cache) -> None:
    shown = [cache, cache[0], cache.tokens(0), cache.manifest, cache.manifest.targets]
    assert all("\n" not in repr(item) and len(repr(item)) < 200 for item in shown)
    assert f"{len(cache[0])} tokens" in repr(cache[0])


def test_a_notebook_shows_a_cache_as_a_table(cache: Cache) -> None:
    page = cache._repr_html_()
    assert f"{cache.n_positions:,}" in page and cache.url in page and cache.cache_id in page
