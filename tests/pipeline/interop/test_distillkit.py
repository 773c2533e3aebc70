"""Imports of DistillKit's files: the cache equals the output of its decoder, and invalid files are refused."""

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdpipe.cache.opening import open_cache
from kdpipe.cache.verify import verify_cache
from kdpipe.schemas.arrays import SCALAR_STEP
from kdpipe.schemas.errors import ConfigError
from support.interop_sources import DISTILLKIT, DISTILLKIT_IDS, SETS, expected, imported, surveyed, word_tokenizer

STEP = 1 / 16  # of log p in a cache


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(word_tokenizer(tmp_path_factory.mktemp("tokenizers") / "words", DISTILLKIT_IDS))


def make(tokenizer: str, source: Path, out: Path, **settings: Any) -> Any:
    return imported(source_format="distillkit", source=str(source), tokenizer=tokenizer, out=str(out), **settings)


def survey(source: Path, **settings: Any) -> Any:
    return surveyed(DISTILLKIT_IDS, source_format="distillkit", source=str(source), **settings)


def copied(name: str, folder: Path) -> Path:
    return Path(shutil.copytree(DISTILLKIT / name, folder / name))


def change(folder: Path, column: str, edit: Any, row: int = 1) -> Path:
    """One row of a copied set with one column changed."""
    path = folder / "data_0.parquet"
    table = pq.read_table(path)
    values = table.column(column).to_pylist()
    values[row] = edit(values[row])
    at = table.column_names.index(column)
    pq.write_table(
        table.set_column(at, table.schema.field(column), pa.array(values, table.schema.field(column).type)), path
    )
    return folder


@pytest.mark.parametrize("name", SETS)
def test_a_cache_equals_the_output_of_distillkits_decoder(name: str, tokenizer: str, tmp_path: Path) -> None:
    report = make(tokenizer, DISTILLKIT / name, tmp_path / "cache", pack=False)
    cache, due = open_cache(tmp_path / "cache"), expected(name)
    k = due["ids"].shape[2]
    assert (report.documents, report.positions, report.tail, len(cache)) == (3, 57, "rest", 3)
    assert cache.manifest.targets.keep.model_dump() == {
        "kind": "imported", "source": "distillkit", "max_entries": k, "tail_known": True,
    }  # fmt: skip
    for number, rows in enumerate(cache):
        # Row t is about token t + 1: the last of DistillKit's rows is about a token that is not there.
        assert rows.loss_mask.tolist() == [True] * 19 + [False]
        assert rows.count.tolist() == [k] * 19 + [0]
        for t in range(19):
            values = dict(zip(due["ids"][number, t].tolist(), due["logprobs"][number, t].astype(float), strict=True))
            mass = math.fsum(math.exp(value) for value in values.values())
            here = slice(t * k, (t + 1) * k)
            found = dict(zip(rows.ids[here].tolist(), rows.logprobs[here].tolist(), strict=True))
            assert found.keys() == values.keys()
            over = math.log(max(mass, 1.0))
            assert max(abs(found[i] - values[i] + over) for i in values) <= 1.5 * STEP
            assert rows.log_tail is not None
            if mass < 1:
                assert abs(math.exp(rows.log_tail[t]) - (1 - mass)) <= SCALAR_STEP / 8
            label = int(rows.tokens[t + 1])
            assert rows.label_logprob is not None
            if label in values:
                assert rows.label_logprob[t] == found[label]
            else:
                assert np.isnan(rows.label_logprob[t])
    assert verify_cache(str(tmp_path / "cache"), "full").ok


def test_legacy_logits_are_normalized_and_their_tail_is_unknown(tokenizer: str, tmp_path: Path) -> None:
    report = make(tokenizer, DISTILLKIT / "legacy", tmp_path / "cache", pack=False)
    cache, due = open_cache(tmp_path / "cache"), expected("legacy")
    assert report.tail == "unknown"
    assert not cache.manifest.targets.tail_known
    assert "tail mass" in report.unknown
    for number, rows in enumerate(cache):
        logits = due["logits"][number].astype(np.float64)
        values = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        found = rows.logprobs.reshape(19, 128)
        np.testing.assert_allclose(found, -np.sort(-values[:19], axis=1), atol=STEP / 2 + 3e-3)
        assert rows.log_tail is None


def _with_first(row: list[int], value: float) -> list[int]:
    """A row whose most probable id has another log p, in bfloat16."""
    bits = np.array([value], np.float32).view(np.uint32)[0] >> 16
    return [int(bits) & 255, int(bits) >> 8, *row[2:]]


@pytest.mark.parametrize(
    ("column", "edit", "named"),
    [
        (
            "compressed_logprobs",
            lambda rows: [*rows[:4], rows[4][:-1], *rows[5:]],
            "row 2: compressed_logprobs has 55 numbers after token 4, expected 56",
        ),
        (
            "bytepacked_indices",
            lambda rows: [rows[0][:100], *rows[1:]],
            "row 2: bytepacked_indices has 100 numbers after token 0, expected 192",
        ),
        ("bytepacked_indices", lambda rows: rows[:9], "compressed_logprobs has 20 rows, bytepacked_indices has 9"),
        ("input_ids", lambda ids: ids[:12], "targets for 20 of 12 tokens"),
        ("input_ids", lambda ids: [*ids[:3], 4096, *ids[4:]], "token 3 is 4096, outside the tokenizer's vocabulary of"),
        ("input_ids", lambda ids: [*ids[:3], 2**64 - 1, *ids[4:]], "input_ids contains 18446744073709551615"),
        ("input_ids", lambda ids: None, "row 2: input_ids is empty"),
        (
            "bytepacked_indices",
            lambda rows: [[0] * 192, *rows[1:]],
            "row 2: after token 0, duplicate id 0",
        ),
        (
            "compressed_logprobs",
            lambda rows: [_with_first(rows[0], 0.5), *rows[1:]],
            "row 2: after token 0, a log-probability is 0.5",
        ),
        (
            "compressed_logprobs",
            lambda rows: [_with_first(rows[0], math.nan), *rows[1:]],
            "row 2: after token 0, a log-probability is nan",
        ),
        (
            "compressed_logprobs",
            lambda rows: [*rows[:2], [0] * 56, *rows[3:]],
            "row 2: after token 2, probabilities add up to 128",
        ),
    ],
)  # fmt: skip
def test_an_invalid_row_is_named(column: str, edit: Any, named: str, tmp_path: Path) -> None:
    folder = change(copied("recommended", tmp_path), column, edit)
    with pytest.raises(ConfigError) as refused:
        survey(folder)
    assert refused.value.message.startswith("data_0.parquet, row 2: ")
    assert named in refused.value.message


def test_no_cache_is_created_for_an_invalid_source(tokenizer: str, tmp_path: Path) -> None:
    folder = change(copied("recommended", tmp_path), "input_ids", lambda ids: ids[:3])
    with pytest.raises(ConfigError, match="targets for 20 of 3 tokens"):
        make(tokenizer, folder, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_bad_legacy_row_is_named(tmp_path: Path) -> None:
    folder = change(copied("legacy", tmp_path), "coeffs", lambda rows: [[math.inf] * 9, *rows[1:]])
    with pytest.raises(ConfigError, match=r"data_0\.parquet, row 2: after token 0, a logit"):
        survey(folder)
    folder = change(copied("legacy", tmp_path / "short"), "exact_values", lambda rows: rows[:7])
    with pytest.raises(ConfigError, match=r"row 2: .*20, 7 and 20"):
        survey(folder)


def test_there_may_be_one_row_less_than_tokens(tmp_path: Path) -> None:
    folder = copied("recommended", tmp_path)
    for row in range(3):
        for column in ("compressed_logprobs", "bytepacked_indices"):
            change(folder, column, lambda rows: rows[:-1], row)
    assert survey(folder).fingerprint == survey(DISTILLKIT / "recommended").fingerprint


def test_ids_outside_a_smaller_tokenizer_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"outside the tokenizer's vocabulary of 4,000"):
        surveyed(4000, source_format="distillkit", source=str(DISTILLKIT / "recommended"))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (None, r"no compression_config\.yaml"),
        ("d: 4096\nk: 128\n", "exact_k: field required"),
        ("d: 4096\nk: 128\nexact_k: 16\nresidual_bins: []\nexakt_dtype: float32\n", "unknown key 'exakt_dtype'"),
        ("d: 4096\nk: 128\nexact_k: 16\nresidual_bins: []\n", "the 112 values"),
        ("legacy_logit_compression:\n  k: 128\n", "exact_k: field required"),
        ("- 1\n", "is not a mapping of settings"),
    ],
)
def test_invalid_codec_settings_are_refused(text: str | None, named: str, tmp_path: Path) -> None:
    folder = copied("recommended", tmp_path)
    (folder / "compression_config.yaml").unlink()
    if text is not None:
        (folder / "compression_config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=named):
        survey(folder)


def test_codec_settings_may_be_in_another_file(tmp_path: Path) -> None:
    folder = copied("recommended", tmp_path)
    (folder / "compression_config.yaml").rename(tmp_path / "codec.yaml")
    (tmp_path / "training.yaml").write_text(
        "logprob_compressor:\n" + "".join(f"  {line}\n" for line in (tmp_path / "codec.yaml").read_text().splitlines())
    )
    first = survey(folder, codec=str(tmp_path / "codec.yaml"))
    assert survey(folder, codec=str(tmp_path / "training.yaml")).fingerprint == first.fingerprint


def test_another_format_than_the_files_have_is_refused(tmp_path: Path) -> None:
    folder = copied("recommended", tmp_path)
    shutil.copy(DISTILLKIT / "legacy" / "compression_config.yaml", folder)
    with pytest.raises(ConfigError, match=r"data_0.parquet has no column packed_indices.*input_ids, compressed_"):
        survey(folder)


def test_tail_rest_is_refused_for_legacy_logits(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--tail rest.*legacy"):
        survey(DISTILLKIT / "legacy", tail="rest")
