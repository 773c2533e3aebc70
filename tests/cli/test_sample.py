"""`kdpipe sample` and `kdpipe chat` as they are typed: options, files of prompts, layout."""

import io
import json
from pathlib import Path

import pytest

from kdpipe.cli import main
from kdpipe.cli.sample import continuations, last_lines, page
from kdpipe.schemas.sample_report import (
    Continuation,
    RunSample,
    RunSamples,
    SampledModel,
    SampleReport,
    SamplingSettings,
    TextSample,
)
from support.corpora import CHATML, small_tokenizer
from support.models import tiny_llama

SHORT = ["--max-new-tokens", "4", "--devices", "cpu"]
LONG = "one two three four five six seven " * 12


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(small_tokenizer(tiny_llama(tmp_path_factory.mktemp("models") / "small"), chat_template=CHATML))


def sampled(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """The prompts of a report."""
    assert main.run(["sample", *words, *SHORT, "--json"]) == 0
    return [one["prompt"] for one in json.loads(capsys.readouterr().out)["samples"]]


def test_prompts_come_from_options_and_files(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines, objects = tmp_path / "lines.txt", tmp_path / "objects.jsonl"
    lines.write_text("first line\n\nsecond line\n")
    objects.write_text('{"prompt": "two\\nlines"}\n')
    assert sampled(capsys, model, "--prompt", "a", "--prompts", str(lines)) == ["a", "first line", "second line"]
    assert sampled(capsys, model, "--prompts", str(objects)) == ["two\nlines"]


def test_files_without_prompts_are_refused(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    contents = {"empty.txt": b"\n", "keys.jsonl": b'{"text": "a"}\n', "bytes.txt": b"\xff\xfe", "list.jsonl": b"[]\n"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert main.run(["sample", model, "--prompts", str(tmp_path / name)]) == 2
        assert name in capsys.readouterr().err
    assert main.run(["sample", model, "--prompts", str(tmp_path / "missing.txt")]) == 2
    assert main.run(["sample", model, "--prompt", "a", "--top-p", "0"]) == 2
    assert main.run(["sample", model, "--prompt", "a", "--temperature", "-1"]) == 2


def test_greedy_texts_do_not_depend_on_the_seed(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = []
    for words in (["--greedy"], ["--greedy", "--seed", "3"], ["--temperature", "0"], ["--seed", "3"]):
        assert main.run(["sample", model, "--prompt", "the value", *words, *SHORT]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] == outputs[2] != outputs[3]


def report(*texts: str) -> SampleReport:
    models = tuple(SampledModel(name=f"runs/{n}", n_parameters=1, device="cpu", dtype="float32") for n in range(2))
    parts = [
        Continuation(model=model.name, text=text, n_tokens=3, ended=False)
        for model, text in zip(models, texts, strict=False)
    ]
    samples = (TextSample(prompt="Once", document=1200, continuations=tuple(parts)),)
    return SampleReport(models=models[: len(texts)], settings=SamplingSettings(), samples=samples)


@pytest.mark.parametrize("columns", [40, 80, 120, 200])
def test_pages_fit_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    for shown in (page(report(LONG)), page(report(LONG, LONG))):
        lines = shown.splitlines()
        assert lines[0] == "1 of 1, validation document 1,200"
        assert max(map(len, lines)) <= min(columns, 120)


def test_texts_are_side_by_side_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"a": "first\nsecond", "b": LONG}
    monkeypatch.setenv("COLUMNS", "120")
    wide = continuations("Once", texts)
    assert wide[0] == "  prompt  Once"
    assert [line.split("|")[0].strip() for line in wide[1:4]] == ["a", "first", "second"]
    monkeypatch.setenv("COLUMNS", "80")
    narrow = continuations("Once", texts)
    assert narrow[:3] == ["  prompt  Once", "  a       first", "          second"]
    assert narrow[3].startswith("  b       one two")


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_the_last_samples_of_a_run_are_short_and_harmless(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    sample = RunSample(document=3, prompt=f"{LONG}the end", text=f"\x1b[31mred\n\u202e{LONG}", n_tokens=9, ended=False)
    empty = sample.model_copy(update={"prompt": "Once", "text": ""})
    lines = last_lines(RunSamples(step=1200, samples=(sample, empty)))
    assert "1,200" in lines[0]
    assert lines[1].endswith("the end") and lines[1].startswith("  prompt  ...")
    assert lines[2].startswith(r"  text    \x1b[31mred \u202e") and lines[2].endswith("...")
    assert lines[3:] == ["  prompt  Once", "  text"]
    assert max(map(len, lines[1:])) < columns


def test_blank_lines_are_kept_but_not_repeated() -> None:
    assert continuations("Once", {"a": "\n\nfirst\n\n\n\nsecond\n"})[1:] == ["  a       first", "", "          second"]


def test_chat_reads_lines_until_exit(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n\n/reset\nHello\n/exit\nnever\n"))
    assert main.run(["chat", model, "--greedy", *SHORT]) == 0
    first, second, *rest = capsys.readouterr().out.split("\n")
    assert first == second and first and rest == [""]
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n"))
    assert main.run(["chat", model, "--max-new-tokens", "1000", "--devices", "cpu"]) == 0
    assert "256 positions" in capsys.readouterr().err


def test_an_interrupt_ends_a_chat_with_exit_code_0(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> str:
        raise KeyboardInterrupt

    stdin = io.StringIO()
    monkeypatch.setattr(stdin, "readline", interrupted)
    monkeypatch.setattr("sys.stdin", stdin)
    assert main.run(["chat", model, *SHORT]) == 0
