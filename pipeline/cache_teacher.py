"""Stage one: run the teacher once and write its targets for every token into a cache.

In: the settings of `kdpipe cache-teacher`. Out: a cache, complete or with more parts than before, and a report. Run
again, the command makes the parts that are missing. Paths are checked before torch is imported, which takes seconds.
"""

from kdpipe.pipeline.capture.path_checks import check_paths
from kdpipe.schemas.capture_report import CaptureReport
from kdpipe.schemas.capture_settings import CaptureOptions, CaptureSettings
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.progress import Progress, Task, running
from kdpipe.schemas.targets import CAPTURED


def cache_teacher(settings: CaptureSettings, options: CaptureOptions, progress: Progress) -> CaptureReport:
    """Make the missing parts of a cache, or try out two batches."""
    if settings.out is None and not options.dry_run:
        raise ConfigError("no output directory given", hint="give --out DIR")
    check_paths(settings)
    what = f"predictions of {settings.teacher.name}" if CAPTURED[settings.targets.kind].has_teacher else "tokens"
    progress.message(f"caching {what} for {settings.data.path}")
    with running(progress, Task(name="load torch")):
        from kdpipe.pipeline.capture.capture_run import capture
    return capture(settings, options, progress)
