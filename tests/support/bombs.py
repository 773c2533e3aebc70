"""Files that stand for far more than they have bytes, and what it takes to read them, measured in a process of its own.

In: a folder, or the words of a program. Out: files by name; a child's exit code, messages, peak memory and CPU time.
"""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

MIB, GIB = 1 << 20, 1 << 30
CPU_SECONDS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """How a child ended: what it wrote to stderr, its peak memory, and what it took of the processors."""

    code: int
    stderr: str
    peak_bytes: int
    cpu_seconds: float


# A process has at least the peak of the one that it was forked from, so a small one comes between.
LAUNCHER = """\
import json, os, resource, subprocess, sys
resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[1]),) * 2)
child = subprocess.Popen(sys.argv[2:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
stderr = child.stderr.read().decode()
_, status, used = os.wait4(child.pid, 0)
child.returncode = os.waitstatus_to_exitcode(status)
peak, seconds = used.ru_maxrss * 1024, used.ru_utime + used.ru_stime
print(json.dumps({"code": child.returncode, "stderr": stderr, "peak_bytes": peak, "cpu_seconds": seconds}))
"""


def run_measured(words: list[str]) -> Ran:
    """Run a program; one that takes a minute of CPU time is ended by the system."""
    launcher = [sys.executable, "-c", LAUNCHER, str(CPU_SECONDS), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    answer = subprocess.run(launcher, capture_output=True, check=True, env=environment)
    return Ran(**json.loads(answer.stdout))


def _sparse(start: bytes, end: bytes = b"\0") -> Callable[[Path], None]:
    """Four gigabytes, nearly all of them a hole."""

    def make(path: Path) -> None:
        with path.open("wb") as file:
            file.write(start)
            file.seek(4 * GIB)
            file.write(end)

    return make


def _zstd(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)  # type: ignore[no-any-return]


def _written(data: Callable[[], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(data()) and None


def _repeated(n: int, n_bytes: int, *, nested: bool = False, text: str = "text") -> Callable[[Path], None]:
    """A text that is stored once in a dictionary and referenced so often by rows, or by messages of one row."""

    def make(path: Path) -> None:
        texts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), pa.array(["a b " * (n_bytes // 4)]))
        column: pa.Array = texts
        if nested:
            messages = pa.StructArray.from_arrays([texts, texts], ["role", "content"])
            column = pa.ListArray.from_arrays(pa.array([0, n], pa.int32()), messages)
        table = pa.table({"messages" if nested else text: column})
        pq.write_table(table, path, compression="zstd", store_schema=False, dictionary_pagesize_limit=GIB)

    return make


# name -> how it is made, and its error
DATA: dict[str, tuple[Callable[[Path], None], str]] = {
    "rows.parquet": (_repeated(5_000, MIB), "its rows unfold to"),
    "messages.parquet": (_repeated(5_000, MIB, nested=True), "its rows unfold to"),
    "page.parquet": (_repeated(2, 130 * MIB), "a page unfolds to 136,314,884 bytes"),
    "zeros.parquet": (_sparse(b"PAR1", b"PAR1"), "cannot be read as Parquet"),
    "zeros.json": (_sparse(b""), "expected [ at byte 0"),
    "list-of-zeros.json": (_sparse(b"["), "the value at byte 1 has more than 33,554,432 bytes, or is not terminated"),
    "object-of-zeros.json": (_sparse(b'{"text": "'), "has a line of more than 1,073,741,824 bytes"),
    "zeros.jsonl": (_sparse(b""), "has a line of more than 1,073,741,824 bytes"),
    "zeros.txt": (_sparse(b""), "a NUL byte"),
    "zeros.csv": (_sparse(b"text\n"), "a row of more than 33,554,432 bytes"),
    "quotes.csv": (_written(lambda: b'text\n"' + b'a""\n' * 20_000_000), "a row of more than 33,554,432 bytes"),
    "zeros.jsonl.gz": (_written(lambda: gzip.compress(bytes(300 * MIB))), "expands to more than"),
    "rows.csv.gz": (_written(lambda: gzip.compress(b"text\n" + b"a\n" * 150_000_000, 1)), "expands to more than"),
    "zeros.json.zst": (_written(lambda: _zstd(b"[" + bytes(900 * MIB))), "has more than 33,554,432 bytes"),
    "texts.txt.zst": (_written(lambda: _zstd(b"a " * (450 * MIB))), "expands to more than"),
    "newlines.jsonl": (_written(lambda: b"\n" * 50_000_000), "has more than 1,000,000 consecutive empty lines"),
    "newlines.json": (_written(lambda: b"\n" * 50_000_000), "more than 1,048,576 bytes of white space"),
    "nested.jsonl": (_written(lambda: b"[" * 60_000_000 + b"\n"), "the line has 60,000,001 bytes"),
    "nested.json": (_written(lambda: b"[" * 60_000_000), "nested too deep"),
    "lists.jsonl": (_written(lambda: b'{"text": [' + b"[]," * 10_000_000 + b"0]}\n"), "too many values"),
    "lists.json": (_written(lambda: b'[{"text": [' + b"[]," * 20_000_000 + b"0]}]"), "bytes of memory"),
    "quotes.jsonl": (_written(lambda: b'{"text": [' + b'"\\"",' * 6_000_000 + b"0]}\n"), "too many values"),
    "long.jsonl": (_written(lambda: b'{"text": "' + b"a" * 30_000_000 + b'"}\n'), "30,000,000 bytes, at most"),
}
IMPORTED: dict[str, tuple[Callable[[Path], None], str]] = {
    "numbers.jsonl": (_written(lambda: b'{"tokens": [' + b"1," * 125_000_000 + b"1]}\n"), "the line has 250,000,016"),
    "lists.jsonl": (_written(lambda: b'{"tokens": [1], "ids": [' + b"[]," * 20_000_000 + b"[]]}\n"), "too many values"),
    "zeros.jsonl": (_sparse(b""), "has a line of more than 1,073,741,824 bytes"),
    "newlines.jsonl": (_written(lambda: b"\n" * 50_000_000), "has more than 1,000,000 consecutive empty lines"),
}
