"""Tasks of the lm-eval library: what a student can do, beside how near it is to its teacher.

In: a loaded student, its tokenizer, names of tasks or YAML files that describe one. Out: the metrics of each.
Before it: `pipeline/evaluate.py`. After it: nothing. The only module that imports lm-eval; the extra `eval` brings it.
What the library prints goes to stderr.
"""

import contextlib
import difflib
import importlib.util
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from kdpipe.schemas.errors import ConfigError, KdpipeError

INSTALL = "pip install 'kdpipe[eval]'"
# The second is what the first runs models of transformers with.
LIBRARIES = ("lm_eval", "accelerate")


def check_tasks(tasks: Sequence[str]) -> None:
    """Refuse tasks that nobody knows, or all of them without the library."""
    if any(importlib.util.find_spec(name) is None for name in LIBRARIES):
        raise ConfigError("--tasks needs the library lm-eval, which is not installed", hint=INSTALL)
    known: list[str] | None = None
    for task in tasks:
        if _is_file(task):
            if not Path(task).is_file():
                raise ConfigError(f"there is no file {task}, which would describe a task")
            continue
        known = _manager().all_tasks if known is None else known
        if task not in known:
            near = difflib.get_close_matches(task, known, n=3, cutoff=0.6)
            hint = f"did you mean {' or '.join(near)}?" if near else "`lm-eval ls tasks` lists them"
            raise ConfigError(f"lm-eval knows no task {task}", hint=hint)


def run_tasks(
    model: Any, tokenizer: Any, tasks: Sequence[str], *, limit: int | None, batch_size: int
) -> dict[str, dict[str, float]]:
    """The metrics of each task, with their standard errors as NAME_stderr; `limit` is of documents a task."""
    # Typed by its library only in part: cast at this border.
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
                hint="its data may have to be downloaded first, or its description be mended",
            ) from error
    return {name: _numbers(found) for name, found in answer["results"].items()}


@cache
def _manager(*, include_defaults: bool = True) -> Any:
    """The library's list of tasks; it reads thousands of files to make one."""
    from lm_eval.tasks import TaskManager

    make: Any = TaskManager
    return make(include_defaults=include_defaults)


def _is_file(task: str) -> bool:
    return task.endswith((".yaml", ".yml"))


def _numbers(found: dict[str, Any]) -> dict[str, float]:
    """Metrics by name; the library puts the filter of the answers behind it, `none` where there is no other."""
    return {
        name.removesuffix(",none"): float(value)
        for name, value in found.items()
        if "," in name and isinstance(value, int | float)
    }
