"""Inputs and results of `kdpipe demo`.

Inputs are text that comes with Python, a tokenizer trained on it and the teacher's config, made once in the output
folder; results are the metrics and sample texts of teacher and students.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from kdpipe.pipeline.evaluation.stored import FINAL, load_evaluation
from kdpipe.pipeline.sample import ModelRequest, SampleRequest, sample
from kdpipe.pipeline.small_teacher import TeacherSizes, documents, make_tokenizer, shape, write_corpus, write_text
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.progress import SilentProgress
from kdpipe.schemas.sample_report import SamplingSettings
from kdpipe.schemas.strict_json import parse
from kdpipe.schemas.train_report import Evaluation

# The beginning of a sentence in one of the documents.
PROMPT = 'The "with" statement is used to'
SAMPLE_TOKENS = 90
TEACHER = TeacherSizes()


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoPaths:
    """Files of a demo; `steps` is the number of training steps of each model."""

    out: Path
    steps: int

    @property
    def corpus(self) -> Path:
        return self.out / "corpus.jsonl"

    @property
    def tokenizer(self) -> Path:
        return self.out / "tokenizer"

    @property
    def script(self) -> Path:
        """The commands of the demo."""
        return self.out / "commands.sh"

    @property
    def teacher_config(self) -> Path:
        """The config of the teacher, which is trained from random init."""
        return self.out / "teacher.json"

    @property
    def tokens(self) -> Path:
        """The documents as a cache without a teacher."""
        return self.out / "tokens"

    @property
    def teacher_run(self) -> Path:
        return self.out / "teacher-run"

    @property
    def teacher(self) -> Path:
        """The model folder of the trained teacher."""
        return self.teacher_run / FINAL

    @property
    def cache(self) -> Path:
        return self.out / "cache"

    @property
    def labels(self) -> Path:
        """The run of the student that is trained on the text alone."""
        return self.out / "labels"

    @property
    def distilled(self) -> Path:
        """The run of the student that is trained on the cache."""
        return self.out / "distilled"

    @property
    def runs(self) -> dict[str, Path]:
        """Every run by the name of its model."""
        return {"teacher": self.teacher_run, "labels": self.labels, "distilled": self.distilled}


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """The last evaluation and a sample text of each model, and bytes by path."""

    prompt: str
    evaluations: dict[str, Evaluation]
    texts: dict[str, str]
    n_bytes: dict[Path, int]


def prepare(out: Path, steps: int) -> DemoPaths:
    """Make the inputs of the commands unless they exist; a folder of something else is refused."""
    paths = DemoPaths(out=out, steps=steps)
    _claim_folder(out / "demo.json", steps)
    if not paths.corpus.is_file():
        write_corpus(paths.corpus, documents())
    if not paths.tokenizer.is_dir():
        make_tokenizer(paths.corpus, paths.tokenizer, TEACHER)
    if not paths.teacher_config.is_file():
        write_text(paths.teacher_config, json.dumps({"model_type": "llama", **shape(TEACHER)}, indent=2) + "\n")
    return paths


def _claim_folder(marker: Path, steps: int) -> None:
    """Mark a new or empty folder as a demo, or check that the demo in it has as many steps."""
    out = marker.parent
    out.mkdir(parents=True, exist_ok=True)
    if marker.is_file():
        started = parse(marker.read_bytes(), str(marker)).get("steps")
        if started != steps:
            raise ConfigError(
                f"{out} holds a demo of {started} steps, not of {steps}",
                hint=f"give --steps {started} to resume it, or another --out",
            )
        return
    if any(path.suffix != ".tmp" for path in out.iterdir()):
        raise ConfigError(f"{out} is neither empty nor a demo of this version", hint="give another --out")
    write_text(marker, json.dumps({"steps": steps}) + "\n")


def load_results(paths: DemoPaths) -> DemoResult:
    """Read the results of the commands, and generate sample texts."""
    evaluations = {name: load_evaluation(run) for name, run in paths.runs.items()}
    models = tuple(ModelRequest(name=str(run), devices="cpu") for run in paths.runs.values())
    sampling = SamplingSettings(max_new_tokens=SAMPLE_TOKENS)
    report = sample(SampleRequest(models=models, settings=sampling, prompts=(PROMPT,)), SilentProgress())
    texts = [part.text for part in report.samples[0].continuations]
    outputs = (paths.corpus, paths.tokenizer, paths.tokens, paths.teacher, paths.cache, paths.labels, paths.distilled)
    return DemoResult(
        prompt=PROMPT,
        evaluations={name: last for name, last in evaluations.items() if last is not None},
        texts=dict(zip(paths.runs, texts, strict=True)),
        n_bytes={path: _n_bytes(path) for path in outputs},
    )


def _n_bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
