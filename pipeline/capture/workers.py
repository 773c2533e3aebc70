"""One worker process per GPU, and one report of progress for all of them.

In: the settings of each worker. Out: their reports. Workers share nothing but the cache; the first that fails stops the
others, and committed parts stay.
"""

import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from queue import Empty
from typing import Any, final

from kdpipe.cache.verify.children import end_with_parent, shielded
from kdpipe.pipeline.capture.capture_progress import TEACHER_SHARE
from kdpipe.pipeline.capture.part_queue import WorkerShard
from kdpipe.pipeline.teachers import backend_of
from kdpipe.schemas.capture_report import CaptureReport
from kdpipe.schemas.capture_settings import CaptureSettings
from kdpipe.schemas.choices import TextStyle
from kdpipe.schemas.errors import KdpipeError
from kdpipe.schemas.progress import Progress, Task, TaskUpdate

POLL_SECONDS = 0.5
Work = Callable[[CaptureSettings, WorkerShard, Progress], CaptureReport]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerMessage:
    """A call of a `Progress` method in a worker, or how the worker ended."""

    worker: int
    name: str
    arguments: tuple[Any, ...] = ()


@final
class _QueueProgress:
    """A `Progress` that puts every call into a queue."""

    def __init__(self, worker: int, messages: "multiprocessing.Queue[WorkerMessage]") -> None:
        self._worker, self._messages = worker, messages

    def _send(self, name: str, *arguments: Any) -> None:
        self._messages.put(WorkerMessage(worker=self._worker, name=name, arguments=arguments))

    def message(self, text: str, style: TextStyle = "plain") -> None:
        self._send("message", text, style)

    def warning(self, text: str) -> None:
        self._send("warning", text)

    def begin(self, task: Task) -> None:
        self._send("begin", task)

    def update(self, update: TaskUpdate) -> None:
        self._send("update", update)

    def finish(self, task: Task) -> None:
        self._send("finish", task)


def worker_settings(settings: CaptureSettings) -> list[CaptureSettings]:
    """The settings of each worker process."""
    return [settings.model_copy(update={"machine": machine}) for machine in backend_of(settings).workers()]


def run_workers(
    work: Work, workers: Sequence[CaptureSettings], shard: WorkerShard, progress: Progress
) -> list[CaptureReport]:
    """Run one worker for each of the settings, on equal shares of a shard, and wait for all of them."""
    context = multiprocessing.get_context("spawn")
    messages: Any = context.Queue()
    processes: list[BaseProcess] = []
    try:
        for i, settings in enumerate(workers):
            share = WorkerShard(index=shard.index + shard.count * i, count=shard.count * len(workers))
            process: BaseProcess = context.Process(target=_work, args=(work, settings, share, i, messages), daemon=True)
            with shielded():
                process.start()
            processes.append(process)
        return _gather(processes, messages, progress)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def _work(work: Work, settings: CaptureSettings, shard: WorkerShard, number: int, messages: Any) -> None:
    end_with_parent()
    try:
        report = work(settings, shard, _QueueProgress(number, messages))
        messages.put(WorkerMessage(worker=number, name="ended", arguments=(report,)))
    except KdpipeError as error:
        messages.put(WorkerMessage(worker=number, name="failed", arguments=(error,)))
    except KeyboardInterrupt:
        pass  # unshielded on Windows; the parent received it too
    except Exception as error:
        failure = KdpipeError(f"{type(error).__name__}: {error}", hint="unexpected error; retry with a single device")
        messages.put(WorkerMessage(worker=number, name="failed", arguments=(failure,)))


def _gather(processes: Sequence[BaseProcess], messages: Any, progress: Progress) -> list[CaptureReport]:
    ended: dict[int, CaptureReport] = {}
    silent, together = set[int](), _WorkersProgress(progress)
    while len(ended) < len(processes):
        try:
            message: WorkerMessage = messages.get(timeout=POLL_SECONDS)
        except Empty:
            silent = _silently_ended(processes, ended, silent)
            continue
        match message.name:
            case "ended":
                ended[message.worker] = message.arguments[0]
            case "failed":
                raise message.arguments[0]
            case _:
                together.receive(message)
    return [ended[i] for i in range(len(processes))]


@final
class _WorkersProgress:
    """Several workers as one: a message that several have is shown once, a task is open while any has it open."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._shown: set[tuple[str, str]] = set()
        self._tasks: dict[str, tuple[Task, set[int]]] = {}
        self._latest: dict[int, TaskUpdate] = {}

    def receive(self, message: WorkerMessage) -> None:
        argument, worker = message.arguments[0], message.worker
        match message.name:
            case ("message" | "warning") as name:
                if (name, argument) not in self._shown:
                    self._shown.add((name, argument))
                    getattr(self._progress, name)(*message.arguments)
            case "begin":
                if argument.name not in self._tasks:
                    self._tasks[argument.name] = argument, set()
                    self._progress.begin(argument)
                self._tasks[argument.name][1].add(worker)
            case "update":
                self._latest[worker] = argument
                self._progress.update(_combined_progress(list(self._latest.values())))
            case "finish":
                task, workers = self._tasks[argument.name]
                workers.discard(worker)
                if not workers:
                    self._progress.finish(task)
                    del self._tasks[argument.name]


def _silently_ended(processes: Sequence[BaseProcess], ended: dict[int, CaptureReport], before: set[int]) -> set[int]:
    """Workers that ended without a message; seen twice in a row, they died (killed, out of memory)."""
    gone = {i for i, process in enumerate(processes) if i not in ended and not process.is_alive()}
    if twice := gone & before:
        raise KdpipeError(
            f"worker {min(twice)} died with exit code {processes[min(twice)].exitcode}",
            hint="committed parts are safe; run the same command again to resume",
        )
    return gone


def _combined_progress(latest: Sequence[TaskUpdate]) -> TaskUpdate:
    """The progress of all workers: sums, the mean share of waiting, the longest time left."""
    facts: dict[str, float] = {}
    for update in latest:
        for name, value in update.facts.items():
            facts[name] = facts.get(name, 0) + value
    if TEACHER_SHARE in facts:
        facts[TEACHER_SHARE] /= len(latest)
    known = [update.seconds_left for update in latest if update.seconds_left is not None]
    return TaskUpdate(done=sum(update.done for update in latest), seconds_left=max(known, default=None), facts=facts)
