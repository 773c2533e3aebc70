"""`doctor`: check the machine, or a training run.

In: an output directory, or a run. Out: checks, one by one; those that need torch come last, so that the others are
shown at once.
"""

from collections.abc import Iterator
from pathlib import Path

from kdpipe.pipeline.diagnosis import machine
from kdpipe.pipeline.diagnosis.run_checks import check_run
from kdpipe.schemas.doctor_report import Check


def doctor(run: str | None, out: str) -> Iterator[Check]:
    if run is not None:
        yield from check_run(Path(run).expanduser())
        return
    yield machine.versions()
    yield machine.cores()
    yield from machine.file_system(Path(out).expanduser())
    yield from machine.extras()
    yield machine.hub()
    from kdpipe.pipeline.diagnosis.gpus import gpus

    yield from gpus()
