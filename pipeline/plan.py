"""Size, memory and time of `cache-teacher`, before any weights are loaded; time needs a probe.

In: the settings of `kdpipe plan`. Out: a `PlanReport`. Paths are checked before torch is imported.
"""

from kdpipe.pipeline.capture.path_checks import check_paths
from kdpipe.schemas.capture_report import PlanReport
from kdpipe.schemas.capture_settings import CaptureSettings
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.progress import Progress, Task, running
from kdpipe.schemas.targets import CAPTURED


def plan(
    settings: CaptureSettings, *, tokens: int | None, probe_seconds: float | None, progress: Progress
) -> PlanReport:
    """Plan for some documents, for a number of tokens, or for a number of tokens of such documents."""
    _check(settings, tokens, probe_seconds)
    check_paths(settings)
    progress.message(f"planning a cache of {settings.teacher.name or 'tokens'}")
    with running(progress, Task(name="load torch")):
        from kdpipe.pipeline.capture.plan_estimate import plan_report
    return plan_report(settings, tokens=tokens, probe_seconds=probe_seconds, progress=progress)


def _check(settings: CaptureSettings, tokens: int | None, probe_seconds: float | None) -> None:
    """Refuse a plan without documents or tokens, and a probe without documents or a teacher."""
    has_data = settings.data.path is not None
    if not has_data and tokens is None:
        raise ConfigError("nothing to plan: no --data and no --tokens", hint="give --data PATH, --tokens N, or both")
    if probe_seconds is not None and not has_data:
        raise ConfigError("--probe needs documents", hint="give --data PATH")
    if probe_seconds is not None and not CAPTURED[settings.targets.kind].has_teacher:
        raise ConfigError("--probe: targets of kind none have no teacher", hint="omit --probe")
