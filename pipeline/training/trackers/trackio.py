"""Trackio: a local database in OUT/trackio, for `TRACKIO_DIR=OUT/trackio trackio show`.

In: numbers of steps. Out: OUT/trackio, unless TRACKIO_DIR says where.
"""

import io
import os
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import final

from kdpipe.pipeline.training.trackers import PROJECT, TrackedRun
from kdpipe.schemas.errors import ConfigError


@final
class Trackio:
    """One run, under its name however often it is gone on with."""

    def __init__(self, run: TrackedRun) -> None:
        wanted = os.environ.setdefault("TRACKIO_DIR", str((run.folder / "trackio").resolve()))
        # Here, since it reads the environment once, when it is imported.
        import trackio
        from trackio.utils import TRACKIO_DIR

        if Path(wanted) != TRACKIO_DIR:
            raise ConfigError(
                f"trackio writes to {TRACKIO_DIR} in this process, and {wanted} is wanted",
                hint="one process follows the runs of one TRACKIO_DIR: start another, or set it for both",
            )
        # Not the run's own: that one is called again, and speaks, when the process ends.
        self._finish = trackio.finish
        with redirect_stdout(io.StringIO()):
            self._run = trackio.init(
                project=PROJECT,
                name=run.name,
                config=dict(run.config),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Keep some numbers of a step."""
        self._run.log(dict(numbers), step=step)

    def finish(self) -> None:
        """Write what is still in memory."""
        with redirect_stdout(io.StringIO()):
            self._finish()  # type: ignore[no-untyped-call]  # trackio
