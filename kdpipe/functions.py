"""The commands as functions: keywords are the flags of a command, or groups of settings as in its YAML file.

Settings are resolved exactly as on the command line: environment, files, contradictions, nearest names. Progress is
shown on stderr, in a notebook below the cell; `progress=False` shows only warnings.
"""

import dataclasses
import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdpipe.cache.opening import open_cache
from kdpipe.cache.reader import Cache
from kdpipe.cli import capture_options, train_options
from kdpipe.cli.common_options import OUT
from kdpipe.cli.flags import Flag, ParsedFlags
from kdpipe.cli.load_settings import capture_settings, train_settings
from kdpipe.cli.progress import shown_progress
from kdpipe.run_result import RunResult
from kdpipe.schemas.capture_report import PlanReport
from kdpipe.schemas.choices import SplitName
from kdpipe.schemas.errors import ConfigError, KdpipeError
from kdpipe.schemas.settings import by_dotted_name
from kdpipe.schemas.train_report import CompareReport, EvalReport

PathLike = str | os.PathLike[str]
CAPTURE_GROUPS = ("data", "sequences", "teacher", "targets", "hidden", "machine")
TRAIN_GROUPS = (
    "cache", "student", "losses", "optimizer", "schedule", "run", "evaluation", "saving", "guard", "machine",
)  # fmt: skip
PROBE_SECONDS = 30.0


def cache_teacher(
    *,
    teacher: PathLike | None = None,
    data: PathLike | None = None,
    out: PathLike,
    config: PathLike | None = None,
    progress: bool = True,
    **settings: Any,
) -> Cache:
    """Run the teacher once, cache its predictions, and open the cache; call it again to resume."""
    flags = (*capture_options.FLAGS, capture_options.EXTEND, OUT)
    with _hints():
        keywords = {"teacher": teacher, "data": data, "out": out, **settings}
        resolved = capture_settings(_parsed(flags, CAPTURE_GROUPS, keywords, config))
        from kdpipe.pipeline.cache_teacher import cache_teacher as run
        from kdpipe.schemas.capture_settings import CaptureOptions

        with shown_progress(quiet=not progress) as shown:
            run(resolved, CaptureOptions(), shown)
        return open_cache(os.fspath(out))


def plan(
    *,
    teacher: PathLike | None = None,
    data: PathLike | None = None,
    tokens: int | None = None,
    probe: bool = False,
    config: PathLike | None = None,
    progress: bool = True,
    **settings: Any,
) -> PlanReport:
    """Estimate size, memory and time of `cache_teacher`; `probe` runs the teacher for 30 seconds."""
    with _hints():
        keywords = {"teacher": teacher, "data": data, **settings}
        parsed = _parsed(capture_options.FLAGS, CAPTURE_GROUPS, keywords, config)
        resolved = capture_settings(parsed, data=False, out=False)
        from kdpipe.pipeline.plan import plan as run

        with shown_progress(quiet=not progress) as shown:
            return run(resolved, tokens=tokens, probe_seconds=PROBE_SECONDS if probe else None, progress=shown)


def train(
    *,
    cache: PathLike | Mapping[str, Any] | None = None,
    student: PathLike | Mapping[str, Any] | None = None,
    out: PathLike | None = None,
    config: PathLike | None = None,
    dry_run: bool = False,
    progress: bool = True,
    **settings: Any,
) -> RunResult:
    """Train a student from a cache; call it again to resume."""
    with _hints():
        resume_from, overwrite = settings.pop("resume_from", None), settings.pop("overwrite", False)
        keywords = {"cache" if isinstance(cache, Mapping) else "from_cache": cache, "student": student, "out": out}
        resolved = train_settings(_parsed(train_options.FLAGS, TRAIN_GROUPS, keywords | settings, config))
        from kdpipe.pipeline.training.completed_run import report_if_finished
        from kdpipe.schemas.train_settings import TrainOptions

        options = TrainOptions(resume_from=resume_from, overwrite=overwrite, dry_run=dry_run)
        with shown_progress(quiet=not progress) as shown:
            report = report_if_finished(resolved, options, shown)
            if report is None:
                from kdpipe.pipeline.train import train as run

                report = run(resolved, options, shown)
        return RunResult(report.run, report)


def evaluate(
    *,
    cache: PathLike,
    student: "PathLike | RunResult",
    split: SplitName = "validation",
    limit: int | None = None,
    device: str = "auto",
    batch_size: int = 8,
    progress: bool = True,
) -> EvalReport:
    """Compare a student with the teacher of a cache on a held-out split."""
    from kdpipe.pipeline.evaluate import EvalRequest
    from kdpipe.pipeline.evaluate import evaluate as run

    request = EvalRequest(
        cache=os.fspath(cache),
        student=os.fspath(student),
        split=split,
        limit=limit,
        device=device,
        batch_size=batch_size,
    )
    with _hints(), shown_progress(quiet=not progress) as shown:
        return run(request, shown)


def compare(*runs: "PathLike | RunResult") -> CompareReport:
    """Compare runs: settings, metrics, and differences to the first run."""
    from kdpipe.pipeline.compare import compare as run

    with _hints():
        return run([os.fspath(folder) for folder in runs])


@contextmanager
def _hints() -> Iterator[None]:
    """Show an error's hint below its message, in tracebacks and notebooks."""
    try:
        yield
    except KdpipeError as error:
        if error.hint:
            error.add_note(f"hint: {error.hint}")
        raise


def _parsed(
    table: Sequence[Flag], groups: Sequence[str], keywords: Mapping[str, Any], config: PathLike | None
) -> ParsedFlags:
    flags = {flag.name.removeprefix("--").replace("-", "_"): flag for flag in table}
    parsed: list[tuple[Flag, Any]] = []
    for name, value in keywords.items():
        if value is None:
            continue
        if isinstance(value, Mapping) and name in groups:
            for key, inner in by_dotted_name(value, name).items():
                parsed.append((Flag(name=key, key=key, help=""), _plain(inner)))
        elif name in flags:
            parsed.append((dataclasses.replace(flags[name], name=name), _converted(flags[name], _plain(value))))
        else:
            raise _unknown(name, [*flags, *groups])
    return ParsedFlags(flags=tuple(parsed), config=None if config is None else Path(config))


def _plain(value: Any) -> Any:
    """A value that JSON can hold: paths as text, tuples as lists."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _converted(flag: Flag, value: Any) -> Any:
    """The value of a flag; those with a comma list accept a list too."""
    if isinstance(value, bool):
        return flag.convert(value)
    if flag.convert.__name__ == "_unchanged":
        return value
    return flag.convert(",".join(map(str, value)) if isinstance(value, list) else str(value))


def _unknown(name: str, names: Sequence[str]) -> ConfigError:
    from kdpipe.schemas.peer_names import PEER_NAMES

    if (here := PEER_NAMES.get(name)) is not None:
        return ConfigError(f"unknown keyword {name!r}: here it is {here}")
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    nearest = f": the nearest is {near[0]!r}" if near else ""
    return ConfigError(f"unknown keyword {name!r}{nearest}", hint=f"keywords: {', '.join(sorted(names))}")
