"""What `kdpipe demo` runs and shows; the commands themselves are replaced here."""

import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from kdpipe.cli import console, main
from kdpipe.cli.demo import NEXT, page, stages
from kdpipe.pipeline import demo
from kdpipe.pipeline.demo import DemoPaths, DemoResult
from support.evaluations import evaluation

real = main.run
DIFFERENCES = {"kl_teacher": {"value": -0.96, "spread": 0.04}, "top1_agreement": {"value": 0.151, "spread": 0.01}}
# Lines that samples of real models take beyond those of the texts here, at two lines for each model.
SAMPLE_LINES = 2
REPORTS: dict[str, Any] = {
    "cache-teacher": {"positions": 215_670, "fidelity": {"kl_nats": 5e-5}, "bytes_per_position": 23.42},
    "plan": {"bytes": 3_900_000, "positions": {"train": 200_000, "validation": 15_000}},
    "train": {"n_parameters": 125_248, "steps": 300, "evaluation": {"cross_entropy": 3.01}},
    "verify": {"bytes": 5_100_000},
    "inspect": {"fidelity": {"kl_nats": 5e-5}, "entries_per_position": {"mean": 17.1}},
    "compare": {"runs": [{}, {"differences": DIFFERENCES}]},
    "eval": {},
}


def results(paths: DemoPaths) -> DemoResult:
    """A demo that went well."""
    texts = {"teacher": "walk over\n  a list", "labels": "wolk ovr " * 20, "distilled": "walk ower a lost"}
    return DemoResult(
        prompt="The loop is used to",
        evaluations={
            "teacher": evaluation(kl_teacher=None, top1_agreement=None),
            "labels": evaluation(),
            "distilled": evaluation(kl_teacher=(10.0, 9.0, 9.5, 9.9)),
        },
        texts=texts,
        n_bytes={paths.corpus: 465_000, paths.cache: 5_100_000},
    )


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], list[list[str]]]:
    """Play every command but the demo; the one of this number ends with this code."""

    def play(number: int, code: int) -> list[list[str]]:
        seen: list[list[str]] = []

        def run(words: Sequence[str]) -> int:
            if words[0] == "demo":
                return real(words)
            seen.append(list(words))
            if words[-1] == "--json":
                console.document(REPORTS[words[1] if words[0] == "cache" else words[0]])
            return code if len(seen) == number else 0

        monkeypatch.setattr(main, "run", run)
        monkeypatch.setattr(demo, "load_results", results)
        return seen

    return play


def test_the_commands_shown_are_those_run_and_the_end_reports_results(
    tmp_path: Path, typed: Callable[[int, int], list[list[str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    out, seen = tmp_path / "a folder", typed(0, 0)
    assert main.run(["demo", "--out", str(out), "--steps", "7", "--verbose"]) == 0
    messages = capsys.readouterr()
    assert [shlex.split(line) for line in re.findall(r"^\$ kdpipe (.*)$", messages.err, re.MULTILINE)] == seen
    paths = DemoPaths(out=out, steps=7)
    assert [stage.words for stage in stages(paths)] == seen
    assert messages.out.endswith(f"{page(paths, results(paths), verbose=True)}\n")


def test_a_demo_fits_two_screens_of_80_columns(
    tmp_path: Path,
    typed: Callable[[int, int], list[list[str]]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    seen = typed(0, 0)
    assert main.run(["demo"]) == 0
    messages = capsys.readouterr()
    lines = [*messages.err.splitlines(), *messages.out.splitlines()]
    assert len(lines) + SAMPLE_LINES <= 48
    assert max(map(len, lines)) <= 80, max(lines, key=len)
    paths = DemoPaths(out=Path("runs/demo"), steps=300)
    assert seen == [[*stage.words, "--json"] for stage in stages(paths)]
    results = {line.strip() for line in messages.err.splitlines()}
    assert "215,670 positions, 23.4 bytes per position" in results
    assert "125,248 parameters, 300 steps, validation CE 3.010" in results
    assert "distilled instead of labels: KL -0.96 ± 0.04, agreement +15.1 ± 1.0 points" in results


def test_the_commands_are_a_script(
    tmp_path: Path, typed: Callable[[int, int], list[list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for path, is_on_path in ((str(Path(sys.executable).parent), True), (str(tmp_path), False)):
        typed(0, 0)
        monkeypatch.setenv("PATH", path)
        assert main.run(["demo", "--out", str(tmp_path / "out")]) == 0
        paths = DemoPaths(out=tmp_path / "out", steps=300)
        script = paths.script.read_text(encoding="utf-8")
        commands = [shlex.split(line)[1:] for line in script.splitlines() if line.startswith("kdpipe ")]
        assert commands == [stage.words for stage in stages(paths)]
        assert (f'PATH="{Path(sys.executable).parent}:$PATH"' in script) != is_on_path


def test_every_command_that_a_demo_shows_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = DemoPaths(out=tmp_path, steps=7)
    every = [*(stage.words for stage in stages(paths)), *NEXT]
    assert [words for words in every if real([*words, "--help"])] == []
    assert real([*NEXT[0], "--no-such-option", "x", "--help"]) == 2, "a wrong one would be noticed"
    shown_next = re.findall(r"^  kdpipe (.*)$", page(paths, results(paths), verbose=False), re.M)
    assert [shlex.split(line) for line in shown_next] == list(NEXT)
    capsys.readouterr()


def test_devices_are_passed_to_the_commands_that_run_a_model(tmp_path: Path) -> None:
    commands = list(stages(DemoPaths(out=tmp_path, steps=9), "cpu"))
    on_device = [stage.words[0] for stage in commands if stage.words[-2:] == ["--devices", "cpu"]]
    assert on_device == ["train", "plan", "cache-teacher", "cache", "train", "train", "eval", "eval"]
    tokenize = commands[0].words
    assert "--devices" not in tokenize
    no_teacher = [*tokenize[: tokenize.index("--tokenizer")], "--devices", "cpu", "--data", "x", "--out", "y"]
    assert real(no_teacher) == 2, "tokenization would be refused with it"


def test_both_students_are_trained_for_equally_many_steps_and_differ_in_the_mode_alone(tmp_path: Path) -> None:
    paths = DemoPaths(out=tmp_path, steps=9)
    commands = [stage.words for stage in stages(paths)]
    runs = {words[words.index("--out") + 1]: words for words in commands if words[0] == "train"}
    labels, distilled = runs[str(paths.labels)], runs[str(paths.distilled)]
    differing = {(one, other) for one, other in zip(labels, distilled, strict=True) if one != other}
    assert differing == {("output", "hybrid"), (str(paths.labels), str(paths.distilled))}
    for words in runs.values():
        assert words[words.index("--max-steps") + 1] == "9"
        assert "evaluation.every=3" in words


def test_teacher_and_students_are_trained_with_default_optimizer_learning_rates_and_threads(tmp_path: Path) -> None:
    commands = [stage.words for stage in stages(DemoPaths(out=tmp_path, steps=9))]
    typed = [words for words in commands if words[0] == "train"]
    assert len(typed) == 3
    chosen = r"--lr|--optimizer|optimizer\.|schedule\.|machine\."
    assert [word for words in typed for word in words if re.match(chosen, word)] == []


def test_a_stopped_command_ends_the_demo_with_how_to_resume(
    tmp_path: Path, typed: Callable[[int, int], list[list[str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    seen = typed(2, 75)
    assert main.run(["demo", "--out", str(tmp_path), "--steps", "7"]) == 75
    assert len(seen) == 2
    messages = capsys.readouterr()
    assert messages.err.endswith(f"resume the demo with: kdpipe demo --out {tmp_path} --steps 7\n")
    assert messages.out == ""


def test_a_command_that_fails_ends_the_demo_with_its_code(
    tmp_path: Path, typed: Callable[[int, int], list[list[str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    seen = typed(5, 3)
    assert main.run(["demo", "--out", str(tmp_path), "--steps", "7"]) == 3
    assert len(seen) == 5
    errors = capsys.readouterr().err
    assert "resume" not in errors
    assert errors.endswith(f"kdpipe {shlex.join(seen[-1][:-1])}\n"), "without --json"


def test_the_page_has_texts_numbers_sizes_and_honest_words(tmp_path: Path) -> None:
    paths = DemoPaths(out=Path("runs/demo"), steps=7)
    reported = page(paths, results(paths), verbose=True)
    assert reported.startswith(
        "  prompt     The loop is used to ...\n  teacher    walk over a list\n  labels     wolk ovr wolk"
    )
    assert max(map(len, reported.splitlines())) <= 110
    assert "  labels     CE 3.0125   KL to the teacher 0.9600   top-1 agreement 48.8%\n" in reported
    assert "  distilled  CE 3.0125   KL to the teacher 0.0960   top-1 agreement 48.8%\n" in reported
    assert "  teacher    CE 3.0125\n" in reported
    assert "    465.0 kB  runs/demo/corpus.jsonl\n      5.1 MB  runs/demo/cache\n" in reported
