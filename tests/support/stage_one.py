"""Stage one on small real things: a teacher, documents, settings, and the whole story run on them.

In: a folder. Out: settings that `cache_teacher` takes, and what it makes. Child processes import this by name.
"""

import os
import signal
import time
from pathlib import Path
from typing import Any

from kdpipe.pipeline.cache_teacher import cache_teacher
from kdpipe.pipeline.capture.part_queue import WorkerShard
from kdpipe.schemas.capture_report import CaptureReport, PartCounts
from kdpipe.schemas.capture_settings import CaptureOptions, CaptureSettings
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.progress import Progress
from kdpipe.schemas.summary import CacheSizes
from support.corpora import TEXTS, small_tokenizer, write_jsonl
from support.models import tiny_llama
from support.recording import RecordingProgress

LENGTH = 96
VOCABULARY = 512


EMPTY = CaptureReport(
    cache="",
    cache_id=None,
    complete=False,
    parts=PartCounts(planned=0, present=0, made=0),
    positions=0,
    bytes=0,
    sizes=CacheSizes(parts=0, tokenizer=0, tables=0, records=0, journal=None),
    bytes_per_position=None,
    entries_per_position=None,
    positions_per_second=None,
    teacher_share=None,
    batches_halved=0,
    bad_rows=0,
    cut_documents=0,
    fidelity=None,
    seconds=0.0,
)


def make_inputs(folder: Path, n_documents: int = 24) -> None:
    """A teacher with its tokenizer, and documents with a category."""
    small_tokenizer(tiny_llama(folder / "teacher", vocabulary=VOCABULARY), vocabulary=VOCABULARY)
    rows = [{"text": text, "category": "odd" if i % 2 else "even"} for i, text in enumerate(TEXTS[:n_documents])]
    write_jsonl(folder / "corpus.jsonl", rows)


def settings_for(folder: Path, out: str = "cache", **changes: dict[str, Any]) -> CaptureSettings:
    """The settings of a small run; `changes` by section."""
    sections: dict[str, dict[str, Any]] = {
        "data": {"path": str(folder / "corpus.jsonl"), "val_fraction": 0.1},
        "teacher": {"name": str(folder / "teacher")},
        "sequences": {"length": LENGTH},
        "machine": {"devices": "cpu", "threads": 1, "batch_tokens": 512},
    }
    for section, values in changes.items():
        sections[section] = sections.get(section, {}) | values
    return CaptureSettings.model_validate({**sections, "out": str(folder / out)})


def run(settings: CaptureSettings, progress: RecordingProgress | None = None, **options: Any) -> CaptureReport:
    """Run the story."""
    return cache_teacher(settings, CaptureOptions(**options), progress or RecordingProgress())


def talk(settings: CaptureSettings, shard: WorkerShard, progress: Progress) -> CaptureReport:
    """A worker with a message of its own and one that all workers have."""
    for tell in (progress.message, progress.warning):
        tell("all")
        tell(f"worker {shard.index}")
    return EMPTY


def die(settings: CaptureSettings, shard: WorkerShard, progress: Progress) -> CaptureReport:
    """A worker that is killed."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def interrupt_all(settings: CaptureSettings, shard: WorkerShard, progress: Progress) -> CaptureReport:
    """A worker in a terminal in which someone types Ctrl-C; on Linux."""
    os.killpg(0, signal.SIGINT)
    time.sleep(600)
    raise AssertionError


def fail_second(settings: CaptureSettings, shard: WorkerShard, progress: Progress) -> CaptureReport:
    """A worker that takes its time, unless it is the second."""
    if shard.index == 1:
        raise ConfigError("the second fails", hint="another")
    time.sleep(600)
    raise AssertionError
