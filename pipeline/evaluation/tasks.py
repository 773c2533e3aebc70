"""Tasks of the lm-eval library.

In: a loaded student, its tokenizer, names of tasks or their YAML files. Out: metrics by task. The only module that
imports lm-eval (the extra `eval`), whose output is redirected to stderr.
"""

import contextlib
import difflib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from kdpipe.schemas.errors import ConfigError, KdpipeError

INSTALL = "pip install 'kdpipe[eval]'"
# lm-eval needs accelerate to run transformers models.
LIBRARIES = ("lm_eval", "accelerate")
# The metric of the evaluate library that executes code.
CODE_METRIC = "code_eval"


def check_tasks(tasks: Sequence[str]) -> None:
    """Refuse unknown tasks, tasks that execute generated code, and any without the library."""
    if any(importlib.util.find_spec(name) is None for name in LIBRARIES):
        raise ConfigError("--tasks needs lm-eval, which is not installed", hint=INSTALL)
    known: list[str] | None = None
    for task in tasks:
        if _is_file(task):
            if not Path(task).is_file():
                raise ConfigError(f"no such task file: {task}")
            _refuse_code(task, _manager(include_defaults=False))
            continue
        known = _manager().all_tasks if known is None else known
        if task not in known:
            near = difflib.get_close_matches(task, known, n=3, cutoff=0.6)
            hint = f"did you mean {' or '.join(near)}?" if near else "`lm-eval ls tasks` lists them"
            raise ConfigError(f"unknown lm-eval task: {task}", hint=hint)
        _refuse_code(task, _manager())


def _refuse_code(task: str, manager: Any) -> None:
    """Refuse a task, group or tag that executes the code that a student generates."""
    if names := _code_tasks(task, manager.task_index):
        which = task if names == [task] else f"{task} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        raise ConfigError(
            f"--tasks {which} executes code that the student generates, which this version does not support",
            hint=f"remove {task} from --tasks, or run it in a container with lm-eval --confirm_run_unsafe_code",
        )


def _code_tasks(task: str, index: Mapping[str, Any]) -> list[str]:
    """Tasks that execute generated code, among a task or the members of a group or tag; loads no data."""
    own = _description(task) if _is_file(task) else None
    waiting: list[Any] = [task if own is None else own]
    seen = set() if own is None else {str(own.get("task"))}
    names: list[str] = []
    while waiting:
        member = waiting.pop()
        if isinstance(member, str):
            if member in index and member not in seen:
                seen.add(member)
                # A tag has members and no description of its own.
                entry = index[member]
                waiting += entry.tags if entry.cfg is None else [entry.cfg]
        elif _executes(member):
            names.append(str(member.get("task")))
        else:
            below = member.get("task")
            waiting += below if isinstance(below, list) else [below]
    return sorted(set(names))


def _executes(description: Any) -> bool:
    """Whether a task is marked as executing code, or uses the metric that does."""
    metrics = description.get("metric_list") or ()
    return bool(description.get("unsafe_code")) or any(metric.get("metric") == CODE_METRIC for metric in metrics)


def _description(path: str) -> Any:
    """A task's YAML file with its includes; functions in it are not imported."""
    from lm_eval.tasks._yaml_loader import load_yaml

    load: Any = load_yaml
    try:
        return load(path, resolve_func=False)
    except Exception as error:  # YAML errors and those of included files have no common class
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"the task file {path} cannot be read: {line}", hint="fix the file") from error


def run_tasks(
    model: Any, tokenizer: Any, tasks: Sequence[str], *, limit: int | None, batch_size: int
) -> dict[str, dict[str, float]]:
    """The metrics of each task, with standard errors as NAME_stderr; `limit` is in documents per task."""
    # lm-eval is only partly typed.
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    library: Any = lm_eval
    with contextlib.redirect_stdout(sys.stderr):
        manager = _manager() if any(not _is_file(task) for task in tasks) else _manager(include_defaults=False)
        try:
            answer = library.simple_evaluate(
                model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
                tasks=list(tasks),
                limit=limit,
                task_manager=manager,
                log_samples=False,
                bootstrap_iters=1000,
            )
        except (OSError, ValueError, KeyError, ConnectionError) as error:
            raise KdpipeError(
                f"lm-eval could not run {', '.join(tasks)}: {type(error).__name__}: {error}",
                hint="download its data first, or fix its YAML file",
            ) from error
    return {name: _numbers(metrics) for name, metrics in answer["results"].items()}


@cache
def _manager(*, include_defaults: bool = True) -> Any:
    """The library's task list, which takes thousands of files to build."""
    from lm_eval.tasks import TaskManager

    make: Any = TaskManager
    return make(include_defaults=include_defaults)


def _is_file(task: str) -> bool:
    return task.endswith((".yaml", ".yml"))


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    """Metrics by name, without the library's suffix `,none` for unfiltered answers."""
    return {
        name.removesuffix(",none"): float(value)
        for name, value in metrics.items()
        if "," in name and isinstance(value, int | float)
    }
