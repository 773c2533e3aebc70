"""TensorBoard: event files in OUT/tensorboard, for `tensorboard --logdir OUT`.

In: numbers of steps. Out: OUT/tensorboard/events.*.
"""

import shlex
import time
from collections.abc import Mapping
from typing import final

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from kdpipe.pipeline.training.trackers import TrackedRun


@final
class TensorBoard:
    """Writes events; TensorBoard hides those of later steps in older files."""

    def __init__(self, run: TrackedRun) -> None:
        self._folder = run.folder
        self._writer = EventFileWriter(str(run.folder / "tensorboard"))
        start = SessionLog(status=SessionLog.START)
        self._writer.add_event(Event(wall_time=time.time(), step=run.step + 1, session_log=start))
        table = "\n".join(["| setting | value |", "|---|---|", *(f"| {k} | {v} |" for k, v in run.config.items())])
        self._add(run.step, text_pb("settings", table))

    @property
    def location(self) -> str:
        return f"view: tensorboard --logdir {shlex.quote(str(self._folder))}"

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._add(step, scalar_pb(name, value))

    def finish(self) -> None:
        self._writer.close()

    def _add(self, step: int, summary: Summary) -> None:
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))
