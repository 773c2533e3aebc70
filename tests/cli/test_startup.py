"""What a command imports and reads before it can refuse a mistake, and before its first line.

In a new process, where torch is not imported yet. Seconds are measured by benchmarks/startup.py.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.corpora import small_tokenizer
from support.models import tiny_llama
from support.stage_two import make_cache

CODES = """
import json, sys
from kdpipe.cli.main import run
heavy = {"torch", "transformers"}
print(json.dumps([[run(words), sorted(heavy & sys.modules.keys())] for words in json.loads(sys.argv[1])]))
"""
# The state at the first line on stderr, which ends the command.
FIRST_LINE = """
import json, sys
from kdpipe.cli import console
from kdpipe.cli.main import run
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
def first(text):
    state = [text, sorted({"torch", "transformers", "datasets"} & sys.modules.keys()), opened[:]]
    console.document(state)
    sys.stdout.flush()
    import os; os._exit(0)
console.note = first
run(sys.argv[1:])
"""

SECOND_LINE = FIRST_LINE.replace("def first(text):", "def first(text):\n    if 'Hub' not in text: return")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with its teacher and documents, a model of another vocabulary, and one without a tokenizer."""
    folder = tmp_path_factory.mktemp("startup")
    make_cache(folder, "cache")
    small_tokenizer(tiny_llama(folder / "other", vocabulary=400), vocabulary=400)
    tiny_llama(folder / "bare", vocabulary=400)
    (folder / "other-run").mkdir()
    return folder


def in_new_process(folder: Path, program: str, *words: str) -> list[object]:
    done = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=folder, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answer: list[object] = json.loads(done.stdout.strip().splitlines()[-1] if program == CODES else done.stdout)
    return answer


TRAIN = "train --from-cache cache --student tiny --out run"
WRONG = {
    "train --from-cache nowhere --student tiny --out run": 2,
    "train --form-cache cache --student tiny --out run": 2,
    f"{TRAIN} --max-steps 3 --warmup 500": 2,
    f"{TRAIN} --temperature 50": 4,
    f"{TRAIN} --set losses.wieght=1": 2,
    "train --from-cache cache --student ./nowhere --out run": 2,
    "train --from-cache cache --student tinny --out run": 2,
    "train --from-cache cache --student other --out run": 4,
    "train --from-cache cache --student tiny --out corpus.jsonl": 2,
    "eval --from-cache nowhere --student other": 2,
    "eval --from-cache cache --student ./nowhere": 2,
    "eval --from-cache cache --student tiny": 2,
    "eval --from-cache cache --student other": 4,
    "cache-teacher --teacher other --data nowhere.jsonl --out new": 2,
    "cache-teacher --teacher ./nowhere --data corpus.jsonl --out new": 2,
    "cache-teacher --teacher other --tokenizer bare --data corpus.jsonl --out new": 2,
    "cache-teacher --teacher other --data corpus.jsonl --out corpus.jsonl": 2,
    "cache-teacher --teacher other --data corpus.jsonl --out new --top-k 3 --tau 0.1": 2,
    "plan --teacher ./nowhere --tokens 100": 2,
    "plan --teacher other": 2,
    "sample ./nowhere --prompt a": 2,
    "sample bare": 2,
    "chat ./nowhere": 2,
    "export nowhere --to hf": 2,
    "export other-run --to hf": 2,
    "doctor nowhere": 2,
    "compare nowhere other-run": 2,
}
RIGHT = ("cache inspect cache", "cache verify cache", "cache copy cache copied")


def test_mistakes_are_refused_and_caches_handled_without_torch(folder: Path) -> None:
    words = [command.split() for command in (*WRONG, *RIGHT)]
    answers = dict(zip((*WRONG, *RIGHT), in_new_process(folder, CODES, json.dumps(words)), strict=True))
    assert answers == {command: [code, []] for command, code in (WRONG | dict.fromkeys(RIGHT, 0)).items()}
    assert not (folder / "new").exists()


@pytest.mark.parametrize("command", ["train --from-cache cache --out run", "eval --from-cache cache"])
def test_a_look_up_on_the_hub_is_shown_before_torch(folder: Path, command: str) -> None:
    text, heavy, _ = in_new_process(folder, SECOND_LINE, *command.split(), "--student", "nosuch/thing")
    assert isinstance(text, str) and "nosuch/thing" in text and "Hub" in text
    assert heavy == []


@pytest.mark.parametrize(
    "command",
    [
        TRAIN,
        "eval --from-cache cache --student teacher",
        "cache-teacher --teacher teacher --data corpus.jsonl --out new",
        "plan --teacher teacher --data corpus.jsonl",
        "sample teacher --prompt a",
    ],
)
def test_the_first_line_comes_before_torch_and_before_any_part_is_read(folder: Path, command: str) -> None:
    line, heavy, opened = in_new_process(folder, FIRST_LINE, *command.split())
    assert isinstance(opened, list)
    assert line and heavy == []
    places = [(folder / str(path)).resolve() for path in opened]
    inside = {place.relative_to(folder.resolve()) for place in places if place.is_relative_to(folder.resolve())}
    assert not {path for path in inside if "parts" in path.parts or path.suffix == ".jsonl"}
