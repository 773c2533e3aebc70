"""Data of strangers at the command line: refused in two lines, in bounded memory and time, whatever they unfold to."""

import random
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdpipe.pipeline.documents.data_sources import DataQuery, find_files
from kdpipe.pipeline.documents.row_files import Limits
from support.bombs import DATA, GIB, IMPORTED, MIB, Ran, run_measured
from support.commands import kdpipe
from support.corpora import small_tokenizer
from support.models import tiny_llama

# Reading rows as stage one does, without what it imports besides.
READ = """\
import sys
from kdpipe.pipeline.documents.row_files import Limits
from kdpipe.pipeline.documents.data_sources import DataQuery, find_files
from kdpipe.schemas.errors import KdpipeError
try:
    for file in find_files(sys.argv[1], DataQuery(), Limits(document_bytes=1 << 21, row_bytes=1 << 25)):
        for row in file.rows():
            assert row.columns is None or len(str(row.columns.get("text", ""))) <= 1 << 25
            if row.problem:
                print(row.problem, file=sys.stderr)
except KdpipeError as error:
    print(error.message, file=sys.stderr)
    sys.exit(error.exit_code)
"""


# What runs through the whole command line in `make test`: one of each way to be large; the others in `make soak`.
WHOLE = ("rows.parquet", "page.parquet", "zeros.json", "zeros.jsonl", "newlines.jsonl", "quotes.jsonl", "numbers.jsonl")
SECONDS = 10


def marked(names: Iterable[str]) -> list[Any]:
    """The cases, most of which start the whole command in `make soak` alone."""
    return [pytest.param(name, marks=pytest.mark.slow if name in WHOLE else pytest.mark.soak) for name in names]


def assert_bounded(ran: Ran, messages: str, start: Ran) -> None:
    """Two lines with the reason, under 1 GiB, and under ten seconds of the processor more than a start takes."""
    lines = ran.stderr.splitlines()
    assert ran.code == 2, ran
    assert messages in ran.stderr, ran
    assert [line.partition(":")[0] for line in lines[-2:]] == ["error", "hint"], ran
    assert ran.peak_bytes < GIB and ran.cpu_seconds < start.cpu_seconds + SECONDS, (ran, start)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_tokenizer(tiny_llama(tmp_path_factory.mktemp("models") / "teacher"))


@pytest.fixture(scope="module")
def start(teacher: Path) -> Ran:
    """What a command takes whose data have no row."""
    (teacher / "empty.jsonl").write_text("")
    words = [
        "cache-teacher",
        "--teacher",
        str(teacher),
        "--data",
        str(teacher / "empty.jsonl"),
        "--out",
        f"{teacher}-out",
    ]
    return run_measured([kdpipe(), *words])


# Too long texts are reported where documents are made.
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(DATA.keys() - {"long.jsonl"}))
def test_rows_of_a_bomb_are_read_in_bounded_memory_and_time(name: str, tmp_path: Path) -> None:
    make, messages = DATA[name]
    make(tmp_path / name)
    ran = run_measured([sys.executable, "-c", READ, str(tmp_path / name)])
    assert messages in ran.stderr, ran
    assert ran.code in (0, 2) and ran.peak_bytes < 768 * MIB and ran.cpu_seconds < SECONDS, ran


@pytest.mark.parametrize("name", marked(sorted(DATA)))
def test_a_bomb_is_refused_as_data(name: str, start: Ran, teacher: Path, tmp_path: Path) -> None:
    make, messages = DATA[name]
    make(tmp_path / name)
    words = ["cache-teacher", "--teacher", str(teacher), "--data", str(tmp_path / name), "--out", str(tmp_path / "out")]
    assert_bounded(run_measured([kdpipe(), *words]), messages, start)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", marked(sorted(IMPORTED)))
def test_a_bomb_is_refused_as_an_import(name: str, start: Ran, teacher: Path, tmp_path: Path) -> None:
    make, messages = IMPORTED[name]
    make(tmp_path / name)
    words = [str(tmp_path / name), "--from", "topk", "--tokenizer", str(teacher), "--out", str(tmp_path / "out")]
    assert_bounded(run_measured([kdpipe(), "cache", "import", *words]), messages, start)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("column", ["text", "messages"])
def test_a_large_row_group_is_read_in_bounded_memory(column: str, tmp_path: Path) -> None:
    texts = [random.Random(i).randbytes(1000).hex() for i in range(60_000)]
    rows = texts if column == "text" else [[{"role": "user", "content": text}] for text in texts]
    pq.write_table(pa.table({column: rows}), tmp_path / "a.parquet", row_group_size=60_000)
    ran = run_measured([sys.executable, "-c", READ, str(tmp_path / "a.parquet")])
    assert (ran.code, ran.stderr) == (0, "")
    assert ran.peak_bytes < 300 * MIB and ran.cpu_seconds < SECONDS, ran


def test_a_row_behind_a_line_that_is_too_long_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "' + b"a" * 40_000_000 + b'"}\n{"text": "b"}\n')
    limits = Limits(document_bytes=1 << 21, row_bytes=1 << 25)
    first, second = find_files(str(path), DataQuery(), limits)[0].rows()
    assert first.problem == "the line has 40,000,013 bytes, at most 33,554,432 are allowed"
    assert second.columns == {"text": "b"}
