"""`train`: train a student from a cache; no teacher is imported here or below.

In: the settings of `kdpipe train`. Out: a run folder with checkpoints, metrics.jsonl, config.yaml and `final`, a
Hugging Face model folder, and a report. A second call resumes from the newest usable checkpoint. Paths, settings and
tokenizer are checked before torch is imported, which takes seconds.
"""

import time
from pathlib import Path

from kdpipe.cache.durable.lock import locked
from kdpipe.pipeline.students.student_name import hub_lookup
from kdpipe.pipeline.training import completed_run
from kdpipe.pipeline.training.run_inputs import open_inputs
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.progress import Progress, Task, running
from kdpipe.schemas.run_report import TrainReport
from kdpipe.schemas.train_settings import TrainOptions, TrainSettings


def train(settings: TrainSettings, options: TrainOptions, progress: Progress) -> TrainReport:
    """Start a run, resume it, or return the report of a finished one."""
    started = time.perf_counter()
    _check(options)
    if settings.out is None:
        raise ConfigError("no output directory given", hint="give --out DIR")
    folder = Path(settings.out)
    # Before anything in the folder is read: nothing there changes until the run has ended.
    with locked(folder, progress.message):
        if (finished := completed_run.finished_report(folder, settings, options, progress)) is not None:
            return finished
        inputs = open_inputs(settings, progress)
        n_positions = inputs.cache.n_positions
        progress.message(f"training {settings.student.name} from {settings.cache.path}: {n_positions:,} positions")
        if (lookup := hub_lookup(settings.student.name or "")) is not None:
            progress.message(lookup)
        with running(progress, Task(name="load torch")):
            from kdpipe.pipeline.training.training_run import train_in
        return train_in(folder, settings, options, inputs, progress, started)


def _check(options: TrainOptions) -> None:
    """Refuse options that exclude each other."""
    for other, given, effect in (
        ("--overwrite", options.overwrite, "removes all checkpoints"),
        ("--dry-run", options.dry_run, "starts from scratch in a temporary folder"),
    ):
        if given and options.resume_from is not None:
            raise ConfigError(f"--resume-from resumes from a checkpoint, but {other} {effect}", hint="omit one of them")
