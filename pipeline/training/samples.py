"""Validation prompts continued by the student at each evaluation, in samples.jsonl of the run.

In: a `Run`, its `TrainState`, its folder. Out: one line per evaluation, on disk before the checkpoint of its step; a
resumed run cuts the file to the lines of its checkpoint. Texts are greedy and draw no random number, so that a run is
bit-identical with and without samples.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, final

import torch

from kdpipe.cache.durable.files import replace_file, sync_dir, translate_os_errors
from kdpipe.pipeline.generation.cache_prompts import CachePrompt, cache_prompts
from kdpipe.pipeline.generation.text_generator import Generated, TextGenerator
from kdpipe.pipeline.models.memory import is_out_of_memory
from kdpipe.pipeline.training.run import Run
from kdpipe.pipeline.training.train_state import TrainState
from kdpipe.schemas.errors import ConfigError, FileDamaged
from kdpipe.schemas.progress import Progress, Task, running
from kdpipe.schemas.records import read_record
from kdpipe.schemas.sample_report import RunSample, RunSamples, SamplingSettings

FILE: Final = "samples.jsonl"
# Errors of a model's code; transformers has no common class for them.
MODEL_ERRORS = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@final
class ValidationSamples:
    """Continues the same prompts at each evaluation; `seconds` is how long the last time took.

    It does nothing without prompts, and stops after the first error of a model that cannot generate text.
    """

    def __init__(self, run: Run, train_state: TrainState, folder: Path, step: int, progress: Progress) -> None:
        self._train_state, self._progress = train_state, progress
        self._folder, self._path = folder, folder / FILE
        self._prompts: list[CachePrompt] = []
        self._generator: TextGenerator | None = None
        self.seconds = 0.0
        settings, n_positions = run.settings.evaluation, train_state.student.shape.max_positions
        n_tokens = settings.sample_tokens if n_positions is None else min(settings.sample_tokens, n_positions // 2)
        self._settings = SamplingSettings(temperature=0.0, max_new_tokens=n_tokens)
        if settings.samples and run.validation is not None and run.tokenizer is None:
            progress.message("no samples: the cache has no tokenizer")
        elif settings.samples and run.validation is not None and run.tokenizer is not None:
            longest = None if n_positions is None else n_positions - n_tokens
            self._prompts = cache_prompts(run.validation, settings.samples, longest)
            self._tokenizer = run.tokenizer.fast
            try:
                self._generator = TextGenerator(train_state.student.model, self._tokenizer, n_positions)
            except ConfigError as error:
                progress.message(f"no samples: {error.message}")
        self.rewind(step)

    def write(self, step: int) -> None:
        """Continue the prompts after a step, and append the texts to the file."""
        generated = self.generate()
        if generated:
            self._append(RunSamples(step=step, samples=tuple(map(self._sample, self._prompts, generated))))

    def generate(self) -> Sequence[Generated]:
        """The continuations; none if samples are off or the model cannot generate text."""
        if self._generator is None or not self._prompts:
            return ()
        started, train_state = time.perf_counter(), self._train_state
        model = train_state.student.model
        was_training = model.training
        model.eval()
        try:
            task = Task(name="sample", unit="prompts", total=len(self._prompts))
            with running(self._progress, task), train_state.precision.autocast(train_state.device):
                return self._generator.generate([prompt.ids for prompt in self._prompts], self._settings)
        except MODEL_ERRORS as error:
            if is_out_of_memory(error) or isinstance(error, torch.AcceleratorError):
                raise
            self._generator = None
            line = next(iter(str(error).splitlines()), "")
            self._progress.warning(f"the run continues without samples: {type(error).__name__}: {line}")
            return ()
        finally:
            model.train(was_training)
            self.seconds = time.perf_counter() - started

    def of_step(self, step: int) -> RunSamples | None:
        """The texts of the evaluation after a step, if there are any."""
        return next((samples for samples, _ in self._lines() if samples.step == step), None)

    def rewind(self, step: int) -> None:
        """Remove the lines of later steps, and an incomplete one."""
        if not self._path.exists():
            return
        kept = b"".join(line for samples, line in self._lines() if samples.step <= step)
        if kept != self._path.read_bytes():
            with translate_os_errors("could not write samples", self._path):
                replace_file(self._folder, self._path, kept)

    def _sample(self, prompt: CachePrompt, generated: Generated) -> RunSample:
        return RunSample(
            document=prompt.document,
            prompt=str(self._tokenizer.decode(list(prompt.ids))),
            text=generated.text,
            n_tokens=len(generated.ids),
            ended=generated.ended,
        )

    def _lines(self) -> list[tuple[RunSamples, bytes]]:
        """The lines as records and as bytes."""
        lines = []
        for line in self._path.read_bytes().splitlines(keepends=True) if self._path.exists() else ():
            try:
                lines.append((read_record(RunSamples, line, FILE), line))
            except FileDamaged:
                continue
        return lines

    def _append(self, samples: RunSamples) -> None:
        is_new, left = not self._path.exists(), samples.to_json()
        with translate_os_errors("could not write samples", self._path):
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666)
            try:
                while left:
                    left = left[os.write(file, left) :]
                os.fsync(file)
            finally:
                os.close(file)
            if is_new:
                sync_dir(self._folder)
