"""What `kdpipe demo` works on and what it shows at the end: text that comes with Python, all else made on the spot.

In: an output folder and a number of steps. Out: corpus, tokenizer and the teacher's config below it, made once; later
the numbers and sample texts of teacher and students.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from kdpipe.pipeline.evaluation.stored import FINAL, load_evaluation
from kdpipe.pipeline.sample import samples
from kdpipe.pipeline.small_teacher import TeacherSizes, documents, make_tokenizer, shape, write_corpus, write_text
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.strict_json import parse
from kdpipe.schemas.train_report import Evaluation

# How one of the documents goes on, which most have learnt from.
PROMPT = 'The "with" statement is used to'
SAMPLE_TOKENS = 90
TEACHER = TeacherSizes()


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoPaths:
    """Where everything of a demo is; `steps` is what each of its models learns for."""

    out: Path
    steps: int

    @property
    def corpus(self) -> Path:
        """The documents."""
        return self.out / "corpus.jsonl"

    @property
    def tokenizer(self) -> Path:
        """Made for the documents."""
        return self.out / "tokenizer"

    @property
    def teacher_config(self) -> Path:
        """The sizes of the teacher before it has learnt."""
        return self.out / "teacher.json"

    @property
    def tokens(self) -> Path:
        """The documents as a cache without a teacher."""
        return self.out / "tokens"

    @property
    def teacher_run(self) -> Path:
        """How the teacher learnt."""
        return self.out / "teacher-run"

    @property
    def teacher(self) -> Path:
        """The teacher."""
        return self.teacher_run / FINAL

    @property
    def cache(self) -> Path:
        """What the teacher said."""
        return self.out / "cache"

    @property
    def labels(self) -> Path:
        """The student that never heard of the teacher."""
        return self.out / "labels"

    @property
    def distilled(self) -> Path:
        """The student of the cache."""
        return self.out / "distilled"

    @property
    def runs(self) -> dict[str, Path]:
        """Every run, by who learnt in it."""
        return {"teacher": self.teacher_run, "labels": self.labels, "distilled": self.distilled}


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """What came of a demo: by who learnt, the last evaluation and a text; bytes by path."""

    prompt: str
    evaluations: dict[str, Evaluation]
    texts: dict[str, str]
    n_bytes: dict[Path, int]


def begin(out: Path, steps: int) -> DemoPaths:
    """Make what the commands start from, unless a run before has made it; a folder of something else is refused."""
    place = DemoPaths(out=out, steps=steps)
    _claim(out / "demo.json", steps)
    if not place.corpus.is_file():
        write_corpus(place.corpus, documents())
    if not place.tokenizer.is_dir():
        make_tokenizer(place.corpus, place.tokenizer, TEACHER)
    if not place.teacher_config.is_file():
        write_text(place.teacher_config, json.dumps({"model_type": "llama", **shape(TEACHER)}, indent=2) + "\n")
    return place


def _claim(record: Path, steps: int) -> None:
    """Begin a demo in a new or empty folder, or go on with one of as many steps."""
    out = record.parent
    out.mkdir(parents=True, exist_ok=True)
    if record.is_file():
        begun = parse(record.read_bytes(), str(record)).get("steps")
        if begun != steps:
            raise ConfigError(
                f"{out} holds a demo of {begun} steps, and {steps} are asked for",
                hint=f"give --steps {begun} to go on with it, or --out a new folder",
            )
        return
    if any(path.suffix != ".tmp" for path in out.iterdir()):
        raise ConfigError(f"{out} is not empty, and no demo of this version", hint="give --out a new folder")
    write_text(record, json.dumps({"steps": steps}) + "\n")


def shown(place: DemoPaths) -> DemoResult:
    """Read what the commands have left, and have the models write."""
    found = {name: load_evaluation(run) for name, run in place.runs.items()}
    texts = samples([run / FINAL for run in place.runs.values()], PROMPT, SAMPLE_TOKENS)
    made = (place.corpus, place.tokenizer, place.tokens, place.teacher, place.cache, place.labels, place.distilled)
    return DemoResult(
        prompt=PROMPT,
        evaluations={name: each for name, each in found.items() if each is not None},
        texts=dict(zip(place.runs, texts, strict=True)),
        n_bytes={path: _size(path) for path in made},
    )


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
