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
from kdpipe.pipeline.capture.part_queue import WorkerShard
from kdpipe.pipeline.teachers import backend_of
from kdpipe.pipeline.watch import PartsProgress, Watch
from kdpipe.schemas.capture_report import CaptureReport
from kdpipe.schemas.capture_settings import CaptureSettings
from kdpipe.schemas.errors import KdpipeError

POLL_SECONDS = 0.5
Work = Callable[[CaptureSettings, WorkerShard, Watch], CaptureReport]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerMessage:
    """A call of a `Watch` method in a worker, or how the worker ended."""

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


def worker_settings(settings: CaptureSettings) -> list[CaptureSettings]:
    """The settings of each worker process."""
    return [settings.model_copy(update={"machine": machine}) for machine in backend_of(settings).workers()]


def run_workers(
    work: Work, workers: Sequence[CaptureSettings], shard: WorkerShard, watch: Watch
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
        pass  # unshielded on Windows; the parent received it too
    except Exception as error:
        failure = KdpipeError(f"{type(error).__name__}: {error}", hint="unexpected error; retry with a single device")
        messages.put(WorkerMessage(worker=number, name="failed", arguments=(failure,)))


def _gather(processes: Sequence[BaseProcess], messages: Any, watch: Watch) -> list[CaptureReport]:
    ended: dict[int, CaptureReport] = {}
    latest: dict[int, PartsProgress] = {}
    begun, silent = False, set[int]()
    shown: set[tuple[str, ...]] = set()
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
                # All workers read the same documents: the same line is shown once.
                if (name, *message.arguments) not in shown:
                    shown.add((name, *message.arguments))
                    getattr(watch, name)(*message.arguments)
            case name:
                getattr(watch, name)(*message.arguments)
    return [ended[i] for i in range(len(processes))]


def _gone(processes: Sequence[BaseProcess], ended: dict[int, CaptureReport], before: set[int]) -> set[int]:
    """Workers that ended without a message; seen twice in a row, they died (killed, out of memory)."""
    gone = {i for i, process in enumerate(processes) if i not in ended and not process.is_alive()}
    if twice := gone & before:
        raise KdpipeError(
            f"worker {min(twice)} died with exit code {processes[min(twice)].exitcode}",
            hint="committed parts are safe; run the same command again to resume",
        )
    return gone


def _together(latest: Sequence[PartsProgress]) -> PartsProgress:
    """The progress of all workers: sums, the mean share of waiting, the longest time left."""
    known = [news.seconds_left for news in latest if news.seconds_left is not None]
    return PartsProgress(
        positions_done=sum(news.positions_done for news in latest),
        positions_per_second=sum(news.positions_per_second for news in latest),
        waiting_share=sum(news.waiting_share for news in latest) / len(latest),
        bytes_written=sum(news.bytes_written for news in latest),
        seconds_left=max(known, default=None),
    )
