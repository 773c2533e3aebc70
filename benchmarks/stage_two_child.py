"""One measurement of stage two in a child process: pairs of steps, peak memory, time by part, whole commands.

In: the task and its options as JSON. Out: one JSON document.
"""

import contextlib
import ctypes
import gc
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from stage_two_inputs import Case, n_parameters, rows_of, settings_for, student_config, teacher_config
from stage_two_ours import OURS, clocks, ours
from stage_two_pairs import Pairs

from kdpipe.pipeline.models.memory import peak_process_bytes
from kdpipe.schemas.capture_settings import CaptureOptions, CaptureSettings
from kdpipe.schemas.progress import SilentProgress
from kdpipe.schemas.train_settings import TrainOptions, TrainSettings

WARM_UP = 1
Task = dict[str, Any]


def pairs(task: Task) -> dict[str, Any]:
    """Alternating steps of a peer and of kdpipe, saved as they are timed, after one warm-up pair."""
    from stage_two_peers import PEERS, EachStep, versions

    case, work, kept = Case(**task["case"]), Path(task["work"]), Pairs(Path(task["kept"]))
    cache, n_steps = Path(task["cache"]), task["rounds"] + WARM_UP
    with ours(settings_for(case, cache, work / "ours"), ahead=False) as mine:
        n_student, n_teacher = n_parameters(student_config(case)), n_parameters(teacher_config(case, 4.0))
        compared = {"parameters": n_student, "threads": torch.get_num_threads(), "versions": versions()}
        if task["peer"] == "gkd":
            compared["teacher_over_student"] = n_teacher / n_student
        kept.add(compared=compared)
        begun, number = _now(), 0

        def stepped() -> None:
            nonlocal begun, number
            theirs = _since(begun)
            start = _now()
            mine.step()
            pair = {"theirs": theirs, "ours": _since(start)}
            number += 1
            if number > WARM_UP:
                kept.add(pair=pair)
            seconds_of_sides = ", ".join(f"{name} {taken['seconds']:.2f} s" for name, taken in pair.items())
            print(f"  pair {number - WARM_UP}: {seconds_of_sides}", file=sys.stderr, flush=True)
            begun = _now()

        def begin() -> None:
            nonlocal begun
            begun = _now()

        rows = rows_of(cache, case.batch * n_steps)
        callback = EachStep(begin, stepped)
        trainer = PEERS[task["peer"]](case, rows, work / task["peer"], n_steps, callback)
        done = trainer.train()
    losses = {"theirs": done.training_loss, "our_cross_entropy": sum(mine.cross_entropy) / n_steps}
    kept.add(mean_loss=losses)
    return losses


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _since(start: tuple[float, float]) -> dict[str, float]:
    return {"seconds": time.perf_counter() - start[0], "cpu_seconds": time.process_time() - start[1]}


def memory(task: Task) -> dict[str, Any]:
    """Peak memory added by steps to what remains after the first one (weights, moments, the process)."""
    return _over_steps(task, 3, Memory())


def profile(task: Task) -> dict[str, Any]:
    """Seconds by part of some steps, after the first."""
    from stage_two_peers import THEIRS

    return _over_steps(task, 1 + task["rounds"], Profile(OURS if task["peer"] == "ours" else THEIRS))


class Memory:
    """Memory from the end of the first step to the end of the last, on Linux."""

    def begin(self) -> None:
        """Release memory of the first step and reset the high-water mark (man 5 proc)."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        self._before = _status("VmRSS")

    def end(self) -> dict[str, Any]:
        """The result."""
        peak = _status("VmHWM")
        return {"held_bytes": self._before, "peak_bytes": peak, "added_bytes": peak - self._before}


def _status(name: str) -> int:
    results = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert results is not None
    return int(results[1]) * 1024


class Profile:
    """Timers from the end of the first step to the end of the last."""

    def __init__(self, owned: dict[str, Any]) -> None:
        self._spent: dict[str, float] = {}
        self._stack = contextlib.ExitStack()
        self._owned = owned

    def begin(self) -> None:
        """Start the timers."""
        self._stack.enter_context(clocks(self._owned, self._spent))
        self._start = time.perf_counter()

    def end(self) -> dict[str, Any]:
        """Stop the timers."""
        whole = time.perf_counter() - self._start
        self._stack.close()
        return {"seconds": whole, "steps": self._spent | {"all else": whole - sum(self._spent.values())}}


def _over_steps(task: Task, n_steps: int, measured: Memory | Profile) -> dict[str, Any]:
    """Run steps of one side; measurements start after the first."""
    case, work, cache = Case(**task["case"]), Path(task["work"]), Path(task["cache"])
    if task["peer"] == "ours":
        with ours(settings_for(case, cache, work / "ours"), ahead=True) as mine:
            mine.step()
            measured.begin()
            for _ in range(n_steps - 1):
                mine.step()
            return measured.end()
    from stage_two_peers import PEERS, EachStep

    if case.threads is not None:
        torch.set_num_threads(case.threads)
    steps, results = [0], dict[str, Any]()

    def stepped() -> None:
        steps[0] += 1
        if steps[0] == 1:
            measured.begin()
        if steps[0] == n_steps:
            results.update(measured.end())

    rows = rows_of(cache, case.batch * n_steps)
    PEERS[task["peer"]](case, rows, work / task["peer"], n_steps, EachStep(lambda: None, stepped)).train()
    return results


def train(task: Task) -> dict[str, Any]:
    """Run `kdpipe train`; its report."""
    from kdpipe.pipeline.train import train as run

    settings = TrainSettings.model_validate_json(json.dumps(task["settings"]))
    return run(settings, TrainOptions(overwrite=True), SilentProgress()).model_dump(mode="json")


def cache_teacher(task: Task) -> dict[str, Any]:
    """Run `kdpipe cache-teacher`; its peak memory."""
    from kdpipe.pipeline.cache_teacher import cache_teacher as run

    run(CaptureSettings.model_validate_json(json.dumps(task["settings"])), CaptureOptions(), SilentProgress())
    return {"peak_bytes": peak_process_bytes()}


WHAT: dict[str, Callable[[Task], dict[str, Any]]] = {
    "pairs": pairs,
    "memory": memory,
    "profile": profile,
    "train": train,
    "cache-teacher": cache_teacher,
}


def main() -> None:
    """Run the task; only the result goes to stdout."""
    with contextlib.redirect_stdout(sys.stderr):
        results = WHAT[sys.argv[1]](json.loads(sys.argv[2]))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
