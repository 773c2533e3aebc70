"""The commands as functions: keywords are the flags of a command, or groups of settings as in its YAML file.

Settings are resolved exactly as on the command line: environment, files, contradictions, nearest names. Progress is
shown on stderr, in a notebook below the cell; `progress=False` shows only warnings.
"""

import dataclasses
import functools
import inspect
import os
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, Unpack, is_typeddict

from kdpipe.cache.opening import open_cache
from kdpipe.cache.reader import Cache
from kdpipe.capture_keywords import CaptureKeywords, DataKeywords, PathLike, PlanKeywords, TeacherKeywords
from kdpipe.cli import capture_options, train_options
from kdpipe.cli.common_options import OUT
from kdpipe.cli.flags import Flag, ParsedFlags
from kdpipe.cli.load_settings import capture_settings, train_settings
from kdpipe.cli.progress import shown_progress
from kdpipe.run_result import RunResult
from kdpipe.schemas.capture_report import PlanReport
from kdpipe.schemas.choices import SplitName
from kdpipe.schemas.errors import ConfigError, KdpipeError, nearest_name
from kdpipe.schemas.settings import by_dotted_name
from kdpipe.schemas.train_report import CompareReport, EvalReport
from kdpipe.train_keywords import CacheKeywords, EvalKeywords, StudentKeywords, TrainKeywords

P = ParamSpec("P")
R = TypeVar("R")
CAPTURE_FLAGS = (*capture_options.FLAGS, capture_options.EXTEND, OUT)
CAPTURE_GROUPS = ("data", "sequences", "teacher", "targets", "hidden", "machine")
TRAIN_GROUPS = (
    "cache", "student", "losses", "optimizer", "schedule", "run", "evaluation", "saving", "guard", "machine",
)  # fmt: skip
PROBE_SECONDS = 30.0
# A flag in a message, with its placeholder or number.
FLAG = re.compile(r"--([a-z][a-z-]*[a-z])(?: ([A-Z][A-Z_]*\b|[0-9][0-9.]*%?\w*))?")


def _keyword(flag: Flag) -> str:
    return "cache" if flag.name == "--from-cache" else flag.name.removeprefix("--").replace("-", "_")


def _with_keywords(keywords: Any, flags: Sequence[Flag] = ()) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Refuse unknown keywords with the nearest name, and list the keywords in the function's signature and help."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        own = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]
        kinds = {p.name: p.annotation for p in own} | keywords.__annotations__
        names = sorted(kinds)

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                for name in kwargs:
                    if name not in names:
                        raise _unknown(name, names, function.__name__)
                return function(*args, **kwargs)
            except KdpipeError as error:
                error.message = _in_python(error.message, names)
                error.hint = None if error.hint is None else _in_python(error.hint, names)
                raise

        plain = [p.replace(annotation=p.empty) for p in own]
        more = [inspect.Parameter(name, p_kind, default=None) for name in names if name not in {p.name for p in own}]
        checked.__signature__ = inspect.Signature([*plain, *more])  # type: ignore[attr-defined]  # for help and Tab
        checked.__doc__ = "\n".join([str(function.__doc__), *_help(kinds, flags)])
        return checked

    p_kind = inspect.Parameter.KEYWORD_ONLY
    return decorate


def _help(kinds: Mapping[str, Any], flags: Sequence[Flag]) -> list[str]:
    """The keywords with their defaults in brackets, then the groups of settings."""
    texts = {_keyword(flag): flag.help for flag in flags}
    lines = [f"    {name:<24}{_in_python(texts[name], list(kinds))}" for name in sorted(kinds) if name in texts]
    groups = [(name, kind) for name in sorted(kinds) for kind in typing.get_args(kinds[name]) if is_typeddict(kind)]
    shown = [f"    {name + '={...}':<24}{', '.join(kind.__annotations__)}" for name, kind in groups]
    return [
        *(["", "Keywords, with defaults in brackets:", *lines] if lines else []),
        *(["", "Groups of settings, as in a YAML file:", *shown] if shown else []),
    ]


def _in_python(text: str, names: Sequence[str]) -> str:
    """A message with keywords instead of flags: `give --out DIR` becomes `give out=DIR`; commands stay as they are."""

    def keyword(match: re.Match[str]) -> str:
        name = "cache" if match[1] == "from-cache" else match[1].replace("-", "_")
        if name not in names:
            return match[0]
        return f"{name}={match[2]}" if match[2] else name

    return text if "kdpipe " in text else FLAG.sub(keyword, text)


@_with_keywords(CaptureKeywords, CAPTURE_FLAGS)
def cache_teacher(
    *,
    teacher: PathLike | TeacherKeywords | None = None,
    data: PathLike | DataKeywords | None = None,
    out: PathLike,
    config: PathLike | None = None,
    progress: bool = True,
    **settings: Unpack[CaptureKeywords],
) -> Cache:
    """Run the teacher once, cache its predictions, and open the cache; call it again to resume."""
    keywords = {"teacher": teacher, "data": data, "out": out, **settings}
    resolved = capture_settings(_parsed(CAPTURE_FLAGS, CAPTURE_GROUPS, keywords, config))
    from kdpipe.pipeline.cache_teacher import cache_teacher as run
    from kdpipe.schemas.capture_settings import CaptureOptions

    with shown_progress(quiet=not progress) as shown:
        run(resolved, CaptureOptions(), shown)
    return open_cache(os.fspath(out))


@_with_keywords(PlanKeywords, capture_options.FLAGS)
def plan(
    *,
    teacher: PathLike | TeacherKeywords | None = None,
    data: PathLike | DataKeywords | None = None,
    tokens: int | None = None,
    probe: bool = False,
    config: PathLike | None = None,
    progress: bool = True,
    **settings: Unpack[PlanKeywords],
) -> PlanReport:
    """Estimate size, memory and time of `cache_teacher`; `probe` runs the teacher for 30 seconds."""
    keywords = {"teacher": teacher, "data": data, **settings}
    parsed = _parsed(capture_options.FLAGS, CAPTURE_GROUPS, keywords, config)
    resolved = capture_settings(parsed, data=False, out=False)
    from kdpipe.pipeline.plan import plan as run

    with shown_progress(quiet=not progress) as shown:
        return run(resolved, tokens=tokens, probe_seconds=PROBE_SECONDS if probe else None, progress=shown)


@_with_keywords(TrainKeywords, train_options.FLAGS)
def train(
    *,
    cache: Cache | PathLike | CacheKeywords | None = None,
    student: PathLike | StudentKeywords | None = None,
    out: PathLike | None = None,
    config: PathLike | None = None,
    dry_run: bool = False,
    progress: bool = True,
    **settings: Unpack[TrainKeywords],
) -> RunResult:
    """Train a student from a cache; call it again to resume."""
    resume_from, overwrite = settings.pop("resume_from", None), settings.pop("overwrite", False)
    keywords = {"cache": cache, "student": student, "out": out, **settings}
    resolved = train_settings(_parsed(train_options.FLAGS, TRAIN_GROUPS, keywords, config))
    from kdpipe.pipeline.train import train as run
    from kdpipe.schemas.train_settings import TrainOptions

    options = TrainOptions(resume_from=_plain(resume_from), overwrite=overwrite, dry_run=dry_run)
    with shown_progress(quiet=not progress) as shown:
        report = run(resolved, options, shown)
    return RunResult(report.run, report)


@_with_keywords(EvalKeywords)
def evaluate(
    *,
    cache: Cache | PathLike,
    student: PathLike | RunResult,
    split: SplitName = "validation",
    limit: int | None = None,
    progress: bool = True,
    **options: Unpack[EvalKeywords],
) -> EvalReport:
    """Evaluate a student on a cache's held-out split, and on `tasks`: humaneval, or those of lm-eval."""
    from kdpipe.pipeline.evaluate import EvalRequest
    from kdpipe.pipeline.evaluate import evaluate as run

    values: dict[str, Any] = {**options}
    request = EvalRequest(
        cache=_plain(cache),
        student=os.fspath(student),
        split=split,
        limit=limit,
        device=values.pop("devices", "auto"),
        tasks=tuple(values.pop("tasks", ())),
        **values,
    )
    with shown_progress(quiet=not progress) as shown:
        return run(request, shown)


def compare(
    *runs: PathLike | RunResult,
    teacher: bool = False,
    cache: PathLike | None = None,
    device: str = "auto",
    progress: bool = True,
) -> CompareReport:
    """Compare runs and models by settings, metrics, and differences to the first."""
    from kdpipe.pipeline.compare import CompareRequest
    from kdpipe.pipeline.compare import compare as run

    request = CompareRequest(
        names=[os.fspath(folder) for folder in runs],
        teacher=teacher,
        cache=None if cache is None else os.fspath(cache),
        device=device,
    )
    with shown_progress(quiet=not progress) as shown:
        return run(request, shown)


def _parsed(
    table: Sequence[Flag], groups: Sequence[str], keywords: Mapping[str, Any], config: PathLike | None
) -> ParsedFlags:
    flags = {_keyword(flag): flag for flag in table}
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
            raise ConfigError(f"{name} is a group of settings, not {value!r}", hint=f"pass {name}={{...}}")
    return ParsedFlags(flags=tuple(parsed), config=None if config is None else Path(config))


def _plain(value: Any) -> Any:
    """A value that JSON can hold: caches and paths as text, tuples as lists."""
    if isinstance(value, Cache):
        return value.url
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


def _unknown(name: str, names: Sequence[str], function: str) -> ConfigError:
    from kdpipe.schemas.peer_names import PEER_NAMES

    here, hint = PEER_NAMES.get(name), f"see help(kdpipe.{function})"
    if here is None:
        near = nearest_name(name, names, cutoff=0.65)
    elif (flag := re.search(r"\(--([a-z-]+)", here)) is not None:
        near = flag[1].replace("-", "_")
    else:
        return ConfigError(f"unknown keyword {name!r}: here it is {here}", hint=hint)
    shown = f": the nearest is {near!r}" if near else ""
    return ConfigError(f"unknown keyword {name!r}{shown}", hint=hint, nearest=near)
