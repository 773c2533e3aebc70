"""Trackio: a local database in OUT/trackio, for `TRACKIO_DIR=OUT/trackio trackio show`.

In: numbers of steps. Out: OUT/trackio, or TRACKIO_DIR.
"""

import io
import os
import shlex
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import final

from kdpipe.pipeline.training.trackers import PROJECT, TrackedRun
from kdpipe.schemas.errors import ConfigError


@final
class Trackio:
    """One run, which keeps its name when it is resumed."""

    def __init__(self, run: TrackedRun) -> None:
        folder = os.environ.setdefault("TRACKIO_DIR", str((run.folder / "trackio").resolve()))
        self._folder = folder
        # Imported here because it reads the environment at import.
        import trackio
        from trackio.utils import TRACKIO_DIR

        if Path(folder) != TRACKIO_DIR:
            raise ConfigError(
                f"trackio writes to {TRACKIO_DIR} in this process, expected {folder}",
                hint="a process can track runs of one TRACKIO_DIR only: start another process, or set it for both",
            )
        # Not the run's own, which is called again, and prints, when the process ends.
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

    @property
    def location(self) -> str:
        return f"view: TRACKIO_DIR={shlex.quote(self._folder)} trackio show --project {PROJECT}"

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def finish(self) -> None:
        with redirect_stdout(io.StringIO()):
            self._finish()  # type: ignore[no-untyped-call]  # trackio
