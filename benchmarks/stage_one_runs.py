"""Stage one and the bare forward pass of the same teacher over the same batches: time, steps and memory.

In: settings. Out: caches, seconds, the share of each step, peak memory. Run as a script it is a child process that does
one task and prints its peak memory.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from kdpipe.cache.writing.writer import CacheWriter
from kdpipe.pipeline.capture import part_capture as parts
from kdpipe.pipeline.capture.cache_manifest import make_manifest
from kdpipe.pipeline.capture.capture_teacher import CaptureTeacher, open_teacher
from kdpipe.pipeline.capture.create import begin_cache
from kdpipe.pipeline.capture.inputs import Inputs, read_inputs
from kdpipe.pipeline.capture.part_capture import CaptureTally, PartCapture, read_part
from kdpipe.pipeline.capture.writer_thread import WritingThread
from kdpipe.pipeline.documents.segments import Segment
from kdpipe.pipeline.models.head import Head
from kdpipe.pipeline.targets.fidelity import FidelityMeter, Sample
from kdpipe.pipeline.targets.reduce import Reducer
from kdpipe.pipeline.teachers import reading
from kdpipe.pipeline.teachers.forward import Forward
from kdpipe.schemas.capture_settings import CaptureSettings
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.progress import SilentProgress

# Steps in the thread of the teacher, and in parallel to it.
STEPS: dict[str, tuple[tuple[Any, str], ...]] = {
    "layers": ((Forward, "read"),),
    "head": ((Head, "logits"),),
    "reduction": ((Reducer, "reduce"),),
    "fidelity": ((Sample, "add"), (FidelityMeter, "count"), (FidelityMeter, "result")),
    "hidden summaries": ((reading.LogitReader, "_means"), (reading.LogitReader, "_vectors")),
    "block": ((reading, "to_block"),),
    "creating and sealing": (
        (CacheWriter, "publish_tokenizer"),
        (CacheWriter, "publish_tables"),
        (CacheWriter, "seal"),
    ),
}
BESIDE: dict[str, tuple[Any, str]] = {
    "tokenizing": (parts, "read_part"),
    "encoding and writing": (WritingThread, "_write"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """Documents and a loaded teacher."""

    inputs: Inputs
    teacher: CaptureTeacher
    manifest: Manifest

    @property
    def n_parts(self) -> int:
        """The number of planned parts."""
        return self.manifest.plan.n_parts

    def batches(self) -> list[list[Segment]]:
        """The tokenized batches of the teacher."""
        plan, size = self.manifest.plan, self.teacher.batch_tokens
        read = [read_part(self.inputs.corpus, plan, number, size) for number in range(plan.n_parts)]
        return [[part.segments[i] for i in batch] for part in read for batch in part.batches]


def settings_for(teacher: Path, corpus: Path, **sections: dict[str, Any]) -> CaptureSettings:
    """Default settings with overrides; all documents are in the training split."""
    own: dict[str, dict[str, Any]] = {
        "teacher": {"name": str(teacher)},
        "data": {"path": str(corpus), "val_fraction": 0.0},
    }
    return CaptureSettings.model_validate(own | sections)


def opened(settings: CaptureSettings) -> Opened:
    """Read documents, load the teacher."""
    inputs = read_inputs(settings, SilentProgress())
    teacher = open_teacher(settings, inputs.tokenizer)
    return Opened(inputs=inputs, teacher=teacher, manifest=make_manifest(settings, inputs, teacher))


def cache(run: Opened, folder: Path) -> float:
    """Run stage one after loading the teacher; the report and the seconds."""
    started = time.perf_counter()
    writer, request = begin_cache(str(folder), run.manifest, run.inputs, run.teacher)
    tally = CaptureTally(started=started)
    PartCapture(writer, run.inputs.corpus, run.teacher, request, tally).make(range(run.n_parts), _ignore, _ignore)
    writer.seal()
    return time.perf_counter() - started


def bare(run: Opened, batches: Sequence[Sequence[Segment]]) -> float:
    """Seconds of the model's forward pass, with logits."""
    seconds = run.teacher.model.bare_seconds(batches)
    assert seconds is not None
    return seconds


def cached_once(run: Opened) -> float:
    """Run stage one into a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="kdpipe-bench-") as folder:
        return cache(run, Path(folder) / "cache")


def _ignore(_: object) -> None:
    """A silent listener."""


def profile(run: Opened) -> dict[str, Any]:
    """Seconds of one caching run by step; on a GPU every step is synchronized."""
    spent = dict.fromkeys(STEPS, 0.0)
    beside = {name: {"seconds": 0.0, "cpu_seconds": 0.0} for name in BESIDE}
    on_gpu = torch.cuda.is_available() and run.manifest.teacher is not None and torch.cuda.memory_allocated() > 0
    with ExitStack() as stack:
        for step, places in STEPS.items():
            for owner, name in places:
                clocked = _clocked(getattr(owner, name), spent, step, torch.cuda.synchronize if on_gpu else _nothing)
                stack.enter_context(mock.patch.object(owner, name, clocked))
        for step, (owner, name) in BESIDE.items():
            stack.enter_context(mock.patch.object(owner, name, _timed_in_thread(getattr(owner, name), beside[step])))
        total = cached_once(run)
    return {"seconds": total, "steps": spent | {"all else": total - sum(spent.values())}, "beside": beside}


def _nothing() -> None:
    """No synchronization on a CPU."""


def _clocked(
    function: Callable[..., Any], spent: dict[str, float], step: str, wait: Callable[[], None]
) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        wait()
        start = time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            wait()
            spent[step] += time.perf_counter() - start

    return call


def _timed_in_thread(function: Callable[..., Any], spent: dict[str, float]) -> Callable[..., Any]:
    """Wall-clock and CPU seconds in another thread."""

    def call(*arguments: Any) -> Any:
        start, cpu_start = time.perf_counter(), time.thread_time()
        try:
            return function(*arguments)
        finally:
            spent["seconds"] += time.perf_counter() - start
            spent["cpu_seconds"] += time.thread_time() - cpu_start

    return call


def timed(work: Callable[[], object]) -> dict[str, float]:
    """Wall-clock seconds, and CPU seconds of all cores."""
    start, cpu_start = time.perf_counter(), time.process_time()
    work()
    return {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu_start}


def in_own_process(settings: CaptureSettings, what: str) -> dict[str, Any]:
    """Time and memory of one task (cache or bare) in a child process that loads the teacher."""
    words = [sys.executable, __file__, what, settings.model_dump_json(exclude_defaults=True)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{what} failed in its child process:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@contextmanager
def peak_memory(result: dict[str, Any]) -> Iterator[None]:
    """Memory of the block, on Linux: resident bytes before it, peak, and increase."""
    # 5 resets the high-water mark (man 5 proc).
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    yield
    peak = _status("VmHWM")
    result |= {"loaded_bytes": before, "peak_bytes": peak, "added_bytes": peak - before}
    if torch.cuda.is_available():
        result["gpu_peak_bytes"] = torch.cuda.max_memory_allocated()


def _status(name: str) -> int:
    result = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert result is not None
    return int(result[1]) * 1024


def main() -> None:
    """Run one task in this process."""
    what, settings = sys.argv[1], CaptureSettings.model_validate_json(sys.argv[2])
    run = opened(settings)
    batches = run.batches() if what == "bare" else []
    result: dict[str, Any] = {}
    with peak_memory(result):
        result |= timed(lambda: bare(run, batches) if what == "bare" else cached_once(run))
    result["threads"] = torch.get_num_threads()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
