"""docs/cache-format.md is enough: a reader written from it alone reads what `open_cache` reads, for every kind."""

import ast
import dataclasses
import math
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from kdpipe.cache.format.rows import Rows
from kdpipe.cache.opening import create_cache, open_cache
from kdpipe.cache.reader import Cache
from kdpipe.schemas.errors import Incompatible
from support import second_reader
from support.kinds import KINDS, kind_manifest, kind_part, kind_tables, make_kind
from support.second_reader import Contents, Read
from support.source import imported
from support.tiny import unsynced

# float32 arithmetic against float64: a few roundings of a number of size |log p| < 128.
RELATIVE, ABSOLUTE = 2e-6, 2e-5
every_kind = pytest.mark.parametrize("name", KINDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kinds")


@lru_cache(maxsize=len(KINDS))
def both(folder: Path, name: str) -> tuple[Cache, Contents]:
    """A cache as both readers see it."""
    with unsynced():
        make_kind(folder / name, name)
    return open_cache(folder / name), second_reader.read_cache(folder / name)


def close(one: npt.ArrayLike, other: npt.ArrayLike, absolute: float = ABSOLUTE) -> None:
    np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=RELATIVE, atol=absolute)


def same_rows(rows: Rows, read: Read) -> None:
    """Integers equal, numbers within float32 rounding."""
    for mine, theirs in (
        (rows.tokens, read.tokens),
        (rows.loss_mask, read.loss_mask),
        (rows.document_starts, read.document_starts),
        (rows.documents, read.documents),
        (rows.count, read.count),
        (rows.n_exact, read.n_exact),
        (rows.ids, read.ids),
    ):
        assert mine.tolist() == theirs
    assert (None if rows.times is None else rows.times.tolist()) == read.times
    close(rows.logprobs, read.logprobs)
    close(rows.weights, read.weights, absolute=1e-6)
    for layer, vectors in read.hidden.items():
        close(rows.hidden[layer], vectors, absolute=0)
    assert rows.hidden.keys() == read.hidden.keys()
    assert (rows.state is None) == (read.state is None)
    if rows.state is not None and read.state is not None:
        close(rows.state, read.state, absolute=0)


@every_kind
def test_a_reader_written_from_the_page_reads_the_same_rows(folder: Path, name: str) -> None:
    cache, contents = both(folder, name)
    assert cache.cache_id == contents.cache_id
    assert len(cache) == len(contents.sequences) >= 3
    for rows, read in zip(cache, contents.sequences, strict=True):
        same_rows(rows, read)


@every_kind
def test_a_reader_written_from_the_page_reads_the_same_scalars(folder: Path, name: str) -> None:
    cache, contents = both(folder, name)
    for rows, read in zip(cache, contents.sequences, strict=True):
        found = {f"log_z@{t!r}": values for t, values in rows.log_z.items()}
        for column in ("log_tail", "entropy", "label_logprob", "boundary_logprob"):
            if (values := getattr(rows, column)) is not None:
                found[column] = values
        assert found.keys() == read.scalars.keys() - {"drawn_log_tail"}
        for column, values in found.items():
            if column == "label_logprob":  # worked out in float32 where it is that of an exact id
                np.testing.assert_allclose(values, read.scalars[column], rtol=2e-6, atol=2e-5)
            else:
                np.testing.assert_array_max_ulp(values, read.scalars[column].astype(np.float32), maxulp=1)


@every_kind
def test_a_reader_written_from_the_page_reads_the_same_documents(folder: Path, name: str) -> None:
    cache, contents = both(folder, name)
    for i, read in enumerate(contents.sequences):
        assert cache.token_bytes(i).tolist() == read.token_bytes
        assert cache.columns(i) == read.columns
        assert cache.digests(i) == read.digests
        assert (cache.texts(i) if KINDS[name].text else None) == read.texts
        pooled = cache.pooled(i)
        assert pooled.keys() == read.pooled.keys()
        for layer, vectors in pooled.items():
            close(vectors, read.pooled[layer], absolute=0)


@every_kind
def test_a_reader_written_from_the_page_makes_the_same_dense_target(folder: Path, name: str) -> None:
    cache, contents = both(folder, name)
    if name.startswith("none") or name == "imported-tail-unknown":
        with pytest.raises(Incompatible):
            cache.dense(0)
        return
    for i, read in enumerate(contents.sequences):
        close(np.exp(cache.dense(i)), np.exp(second_reader.dense(contents, read)), absolute=2e-6)


@every_kind
def test_what_was_written_comes_back_within_the_bounds_of_the_page(folder: Path, name: str) -> None:
    manifest = kind_manifest(name)
    messages = [pair for number in range(manifest.plan.n_parts) for pair in kind_part(name, manifest, number)]
    _, contents = both(folder, name)
    quantizers = {column.name: column.quantizer.model_dump() for column in manifest.arrays.row.columns}
    for (sequence, block), read in zip(messages, contents.sequences, strict=True):
        assert read.tokens == sequence.tokens.tolist()
        ends = np.cumsum(read.count)
        for t in range(len(read.tokens)):
            here = slice(int(ends[t]) - read.count[t], int(ends[t]))
            assert set(read.ids[here]) == set(block.ids[here].tolist())
            slack = _slack(manifest.arrays.logprob.quantizer.step if manifest.arrays.logprob else 0.0, quantizers)
            written = dict(zip(block.ids[here].tolist(), block.logprobs[here].tolist(), strict=True))
            for id_, value in zip(read.ids[here], read.logprobs[here], strict=True):
                is_nan = math.isnan(value) and math.isnan(written[id_])
                assert is_nan or abs(value - written[id_]) <= slack
        for column, values in read.scalars.items():
            written_values = block.log_z[float(column[6:])] if column[:6] == "log_z@" else getattr(block, column)
            step, mask = quantizers[column]["step"], np.array(read.loss_mask)
            bound = np.full(len(mask), step / 2 + 1e-6)
            if column == "label_logprob" and manifest.arrays.logprob is not None:
                bound[_known_labels(read)] = _slack(manifest.arrays.logprob.quantizer.step, quantizers)
            there = mask & np.isfinite(values)
            assert (np.abs(values - written_values)[there] <= bound[there]).all(), column


def _known_labels(read: second_reader.Read) -> list[int]:
    """The rows whose next token is an exact id."""
    firsts = np.cumsum(read.count) - read.count
    following = [*read.tokens[1:], -1]
    return [t for t, first in enumerate(firsts) if following[t] in read.ids[first : first + read.n_exact[t]]]


def _slack(step: float, quantizers: dict[str, dict[str, float]]) -> float:
    """The bound of an exact log p, and 1e-4 for what float32 targets lack of adding up to 1."""
    return step + quantizers["log_tail"]["step"] / 2 + 1e-4 if "log_tail" in quantizers else step / 2 + 1e-6


@pytest.mark.parametrize("name", ["threshold", "sampled", "state", "none-hidden"])
def test_a_part_without_sequences_is_read_by_both(tmp_path: Path, name: str) -> None:
    manifest = kind_manifest(name)
    with unsynced():
        writer = create_cache(tmp_path, manifest)
        writer.publish_tables(kind_tables(name))
        for number in range(manifest.plan.n_parts):
            with writer.part(number) as part:
                for sequence, block in kind_part(name, manifest, number) if number == 0 else ():
                    part.add(sequence, block)
        writer.seal()
    cache, contents = open_cache(tmp_path), second_reader.read_cache(tmp_path)
    assert [row.n_sequences for row in cache.parts] == [len(contents.sequences), 0]
    for rows, read in zip(cache, contents.sequences, strict=True):
        same_rows(rows, read)


def test_the_second_reader_shares_no_code_with_the_first() -> None:
    tree = ast.parse(Path(second_reader.__file__).read_text(encoding="utf-8"))
    assert not {name for name in imported(ast.walk(tree)) if name.startswith(("kdpipe", "support"))}


def test_the_kinds_cover_every_target_and_option_of_the_format() -> None:
    manifests = [kind_manifest(name) for name in KINDS]
    assert {manifest.targets.keep.kind for manifest in manifests} == {
        "threshold", "sampled", "topk", "topp", "state", "imported", "none",
    }  # fmt: skip
    arrays = {name for manifest in manifests for name, spec in manifest.arrays if spec is not None}
    assert arrays == {"row", "id", "times", "logprob", "hidden", "state"}
    columns = {column.name.partition("@")[0] for manifest in manifests for column in manifest.arrays.row.columns}
    assert columns == {
        "token", "loss_mask", "token_bytes", "n_exact", "n_draws", "log_tail", "drawn_log_tail", "entropy",
        "label_logprob", "log_z", "boundary_logprob",
    }  # fmt: skip
    assert {field.name for field in dataclasses.fields(Read)} >= {"texts", "times", "hidden", "pooled", "state"}
