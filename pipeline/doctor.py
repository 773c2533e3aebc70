"""`doctor`: check the machine, a training run, or whether a cache, a teacher and a student fit together.

In: a run, or an output directory and names. Out: checks, one by one; those that need torch come last, so that the
others are shown at once.
"""

from collections.abc import Iterator
from pathlib import Path

from kdpipe.pipeline.diagnosis import machine
from kdpipe.pipeline.diagnosis.file_system import output_directory
from kdpipe.pipeline.diagnosis.hub import hub
from kdpipe.pipeline.diagnosis.run_checks import check_run
from kdpipe.schemas.doctor_report import Check, DoctorRequest, problem
from kdpipe.schemas.errors import UsageError
from kdpipe.schemas.progress import Progress


def doctor(request: DoctorRequest, progress: Progress) -> Iterator[Check]:
    """Refuse options that exclude each other at once, then check one by one."""
    names = {"--from-cache": request.cache, "--teacher": request.teacher, "--student": request.student}
    given = [option for option, name in names.items() if name is not None]
    if request.run is not None:
        if given or request.out is not None:
            options = ", ".join([*given, *(["--out"] if request.out is not None else [])])
            raise UsageError(f"RUN is checked alone, without {options}", hint="omit RUN, or omit the options")
        return iter(check_run(Path(request.run).expanduser()))
    if given == ["--student"]:
        raise UsageError(
            "--student needs a cache or a teacher to be compared with", hint="give --from-cache CACHE or --teacher NAME"
        )
    return _checks(request, progress, with_models=bool(given))


def _checks(request: DoctorRequest, progress: Progress, *, with_models: bool) -> Iterator[Check]:
    yield machine.versions()
    yield machine.cores()
    yield machine.memory()
    yield from output_directory(request.out or ".")
    yield from machine.extras()
    yield hub()
    try:
        from kdpipe.pipeline.diagnosis.device_checks import check_devices
    except (ImportError, OSError) as error:
        yield problem("devices", f"torch cannot be imported: {error}", "pip install --force-reinstall torch")
        return
    yield from check_devices()
    if with_models:
        from kdpipe.pipeline.diagnosis.setup_checks import check_setup

        yield from check_setup(request.cache, request.teacher, request.student, progress)
