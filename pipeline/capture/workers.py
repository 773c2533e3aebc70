"""One worker process for each GPU, and what they say gathered for one person.

In: settings, and several devices. Out: the parts that all workers made. Workers meet in the cache alone; the first that
fails stops the others, and what is committed stays.
"""

import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from queue import Empty
from typing import Any, final

from kdpipe.cache.verify.children import end_with_parent, shielded
from kdpipe.pipeline.capture.part_queue import WorkerShard
from kdpipe.pipeline.models import devices
from kdpipe.pipeline.teachers.load_teacher import fits_each
from kdpipe.pipeline.teachers.shape import teacher_shape
from kdpipe.pipeline.watch import PartsProgress, Watch
from kdpipe.schemas.capture_report import CaptureReport
from kdpipe.schemas.capture_settings import CaptureSettings
from kdpipe.schemas.errors import KdpipeError

POLL_SECONDS = 0.5
Work = Callable[[CaptureSettings, WorkerShard, Watch], CaptureReport]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerMessage:
    """What a worker says: the name of a `Watch` method and its arguments, or how it ended."""

    worker: int
    name: str
    arguments: tuple[Any, ...] = ()


@final
class _QueueWatch:
    """A `Watch` that puts every call into a queue."""

    def __init__(self, worker: int, messages: "multiprocessing.Queue[WorkerMessage]") -> None:
        self._worker, self._messages = worker, messages

    def _send(self, name: str, *arguments: Any) -> None:
        self._messages.put(WorkerMessage(worker=self._worker, name=name, arguments=arguments))

    def say(self, text: str) -> None:
        self._send("say", text)

    def warn(self, text: str) -> None:
        self._send("warn", text)

    def begin(self, n_parts: int, n_done: int, positions_planned: int | None) -> None:
        self._send("begin", n_parts, n_done, positions_planned)

    def progress(self, news: PartsProgress) -> None:
        self._send("progress", news)

    def part_done(self, number: int, positions: int, n_bytes: int, seconds: float) -> None:
        self._send("part_done", number, positions, n_bytes, seconds)


def one_device_each(settings: CaptureSettings) -> list[CaptureSettings]:
    """The settings of each worker: one for each GPU with `all`, unless the teacher needs them all for itself.

    They share the threads of the CPU.
    """
    if settings.targets.kind == "none":
        return [settings]
    chosen = devices.choose(settings.machine.devices)
    if len(chosen) > 1 and not fits_each(settings.teacher, teacher_shape(settings.teacher), chosen):
        return [settings]
    threads = max(1, devices.n_threads(settings.machine.threads) // len(chosen))
    own = [settings.machine.model_copy(update={"devices": str(device), "threads": threads}) for device in chosen]
    return [settings.model_copy(update={"machine": machine}) for machine in own]


def run_workers(work: Work, each: Sequence[CaptureSettings], shard: WorkerShard, watch: Watch) -> list[CaptureReport]:
    """Run a worker for each of some settings, on equal shares of a shard, and wait for all of them."""
    context = multiprocessing.get_context("spawn")
    messages: Any = context.Queue()
    processes: list[BaseProcess] = []
    try:
        for i, settings in enumerate(each):
            share = WorkerShard(index=shard.index + shard.count * i, count=shard.count * len(each))
            process: BaseProcess = context.Process(target=_work, args=(work, settings, share, i, messages), daemon=True)
            with shielded():
                process.start()
            processes.append(process)
        return _gather(processes, messages, watch)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def _work(work: Work, settings: CaptureSettings, shard: WorkerShard, number: int, messages: Any) -> None:
    end_with_parent()
    try:
        report = work(settings, shard, _QueueWatch(number, messages))
        messages.put(WorkerMessage(worker=number, name="ended", arguments=(report,)))
    except KdpipeError as error:
        messages.put(WorkerMessage(worker=number, name="failed", arguments=(error,)))
    except KeyboardInterrupt:
        pass  # where nothing shields it (Windows): the parent has seen it too
    except Exception as error:
        failure = KdpipeError(f"{type(error).__name__}: {error}", hint="not foreseen: run it with one device")
        messages.put(WorkerMessage(worker=number, name="failed", arguments=(failure,)))


def _gather(processes: Sequence[BaseProcess], messages: Any, watch: Watch) -> list[CaptureReport]:
    ended: dict[int, CaptureReport] = {}
    latest: dict[int, PartsProgress] = {}
    begun, silent = False, set[int]()
    said: set[tuple[str, ...]] = set()
    while len(ended) < len(processes):
        try:
            message: WorkerMessage = messages.get(timeout=POLL_SECONDS)
        except Empty:
            silent = _gone(processes, ended, silent)
            continue
        match message.name:
            case "ended":
                ended[message.worker] = message.arguments[0]
            case "failed":
                raise message.arguments[0]
            case "begin":
                if not begun:
                    watch.begin(*message.arguments)
                begun = True
            case "progress":
                latest[message.worker] = message.arguments[0]
                watch.progress(_together(list(latest.values())))
            case ("say" | "warn") as name:
                # Every worker reads the same documents: what all of them find there is said once.
                if (name, *message.arguments) not in said:
                    said.add((name, *message.arguments))
                    getattr(watch, name)(*message.arguments)
            case name:
                getattr(watch, name)(*message.arguments)
    return [ended[i] for i in range(len(processes))]


def _gone(processes: Sequence[BaseProcess], ended: dict[int, CaptureReport], before: set[int]) -> set[int]:
    """The workers that are no more and have said nothing; seen twice, they died (killed, out of memory)."""
    gone = {i for i, process in enumerate(processes) if i not in ended and not process.is_alive()}
    if twice := gone & before:
        raise KdpipeError(
            f"worker {min(twice)} ended with code {processes[min(twice)].exitcode}, in the middle of its work",
            hint="what was committed is safe; run the same command again to go on",
        )
    return gone


def _together(latest: Sequence[PartsProgress]) -> PartsProgress:
    """The progress of all workers: sums, the mean share of waiting, the longest time that is left."""
    known = [news.seconds_left for news in latest if news.seconds_left is not None]
    return PartsProgress(
        positions_done=sum(news.positions_done for news in latest),
        positions_per_second=sum(news.positions_per_second for news in latest),
        waiting_share=sum(news.waiting_share for news in latest) / len(latest),
        bytes_written=sum(news.bytes_written for news in latest),
        seconds_left=max(known, default=None),
    )
