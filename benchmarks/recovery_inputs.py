"""Caches of the recovery table: text unseen by the teacher, cached with all target kinds.

In: a folder, a trained teacher, sizes. Out: caches by name, made once, of the same documents; bytes per position of
each.
"""

import hashlib
import os
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stage_one_inputs import write_documents

from kdpipe.cache.inspect import inspect_cache
from kdpipe.pipeline.cache_teacher import cache_teacher
from kdpipe.pipeline.small_teacher import TeacherSizes
from kdpipe.schemas.capture_settings import CaptureOptions, CaptureSettings
from kdpipe.schemas.progress import SilentProgress

# Packages of the standard library; the teacher is not trained on their source.
PACKAGES = (
    "asyncio",
    "concurrent",
    "ctypes",
    "email",
    "html",
    "http",
    "importlib",
    "json",
    "logging",
    "multiprocessing",
    "sqlite3",
    "unittest",
    "urllib",
    "wsgiref",
    "xml",
    "xmlrpc",
    "zoneinfo",
)
# The teacher of sweep, recovery and epochs: 4.1 nats on unseen text.
TEACHER = TeacherSizes(
    vocabulary=4096, width=192, layers=4, context=256, batch=8, steps=400, rate=3e-3, table_rate=3e-2
)
VALIDATION_SHARE = 8
MOST_KEPT = 128
KINDS: dict[str, dict[str, Any]] = {
    "state": {"kind": "state"},
    "lean": {"profile": "lean"},
    "standard": {},
    "fine": {"profile": "fine"},
    "50 draws": {"kind": "sampled", "draws": 50},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """Training and validation tokens, and the sequence length."""

    tokens: int
    validation: int
    length: int


class Caches:
    """Caches of one teacher in a folder; `top` is the number of most probable ids at the bytes of `standard`."""

    def __init__(
        self, work: Path, teacher: Path, unseen: list[dict[str, str]], threads: int, progress: Callable[[str], None]
    ) -> None:
        self._work, self._teacher, self._threads, self._progress = work, teacher, threads, progress
        rows = sorted([*unseen, *packages()], key=lambda row: hashlib.sha256(row["text"].encode()).digest())
        self._trained = [row for i, row in enumerate(rows) if i % VALIDATION_SHARE]
        self._validated = rows[::VALIDATION_SHARE]

    def of(self, kind: str, texts: Texts, seed: int = 0) -> Path:
        """The cache of a kind; only that of states has a validation split, used for all students.

        `seed` is that of the draws.
        """
        name = f"{kind.replace(' ', '-')}-{texts.tokens}"
        path = self._work / "caches" / (f"{name}-seed-{seed}" if seed else name)
        if path.is_dir():
            return path
        self._progress(f"  caching {texts.tokens:,} tokens: {kind}")
        work = path.with_name(f"{path.name}.tmp-{os.getpid()}")
        data: dict[str, Any] = {"path": str(self._documents("trained", texts.tokens)), "val_fraction": 0.0}
        if kind == "state":
            data["val_path"] = str(self._documents("validated", texts.validation))
        settings = {
            "data": data,
            "teacher": {"name": str(self._teacher)},
            "targets": target_settings(kind),
            "sequences": {"length": texts.length},
            "hidden": {"pooled": False},
            "machine": {"devices": "cpu", "threads": self._threads},
            "out": str(work),
            "seed": seed,
        }
        cache_teacher(CaptureSettings.model_validate(settings), CaptureOptions(), SilentProgress())
        os.replace(work, path)
        return path

    def top(self, texts: Texts) -> int:
        """The fewest most probable ids with at least the bytes of `standard`, on the validation text."""
        few = Texts(tokens=texts.validation, validation=texts.validation, length=texts.length)
        most = bytes_per_position(self.of("standard", few))
        low, high = 1, MOST_KEPT
        while low < high:
            middle = (low + high) // 2
            enough = bytes_per_position(self.of(f"top-{middle}", few)) >= most
            low, high = (low, middle) if enough else (middle + 1, high)
        return low

    def _documents(self, which: str, n_tokens: int) -> Path:
        path = self._work / f"{which}-{n_tokens}.jsonl"
        if not path.exists():
            work = path.with_name(f"{path.name}.tmp")
            write_documents(work, self._trained if which == "trained" else self._validated, self._teacher, n_tokens)
            os.replace(work, path)
        return path


def target_settings(kind: str) -> dict[str, Any]:
    """Target settings of a name of `KINDS`, `tau X` for a threshold, or `top-K`."""
    if kind.startswith("top-"):
        return {"kind": "topk", "top_k": int(kind.removeprefix("top-"))}
    if kind.startswith("tau "):
        return {"tau": float(kind.removeprefix("tau "))}
    return KINDS[kind]


def bytes_per_position(path: Path) -> float:
    """Bytes per position, without text."""
    return bytes_by_array(path)["total"]


def bytes_by_array(path: Path) -> dict[str, float]:
    """Bytes per position, in total and by array."""
    return {name: float(size) for name, size in inspect_cache(path).bytes_per_position.items()}


def packages() -> list[dict[str, str]]:
    """Functions and classes of the standard library's packages."""
    root = Path(sysconfig.get_paths()["stdlib"])
    rows = []
    for name in PACKAGES:
        for path in sorted((root / name).rglob("*.py")):
            if not {"test", "tests", "__pycache__"} & set(path.parts):
                pieces = path.read_text("utf-8").split("\n\n\n")
                rows += [{"text": piece.strip(), "category": name} for piece in pieces if piece.strip()]
    return rows
