"""Checks of a cache, a teacher and a student: whether they fit together, and what training would take here.

In: their names. Out: checks; those that need one that failed are left out. Nothing is written.
"""

from collections.abc import Callable, Iterator
from typing import final

from kdpipe.cache.reader import Cache
from kdpipe.pipeline.batches.run_cache import open_run_cache
from kdpipe.pipeline.capture.capture_teacher import CapturePlan, plan_capture
from kdpipe.pipeline.capture.estimate import memory_of
from kdpipe.pipeline.capture.inputs import read_tokenizer
from kdpipe.pipeline.diagnosis.trial_steps import BYTES_PER_PARAMETER, memory_check, trial_steps
from kdpipe.pipeline.losses.exactness import exactness
from kdpipe.pipeline.losses.terms import LossOptions
from kdpipe.pipeline.models import devices
from kdpipe.pipeline.students.cache_tokenizer import read_cache_tokenizer
from kdpipe.pipeline.students.compatibility import same_tokenizer
from kdpipe.pipeline.students.presets import TokenIds
from kdpipe.pipeline.students.resolve import ResolvedStudent, resolve_student
from kdpipe.pipeline.students.student_name import ACROSS
from kdpipe.pipeline.teachers import backend_of
from kdpipe.pipeline.tokenizers.tokenizer import LoadedTokenizer, load_tokenizer
from kdpipe.pipeline.tokenizers.tokenizer_difference import difference
from kdpipe.pipeline.training.cache_requirements import default_tail_weight
from kdpipe.pipeline.training.coarse_targets import LEAST_MASS, masses_at, remedy
from kdpipe.pipeline.training.run import Run, plan_run
from kdpipe.schemas.capture_settings import CaptureSettings
from kdpipe.schemas.choices import TextStyle
from kdpipe.schemas.counts import compact, counted, size
from kdpipe.schemas.doctor_report import Check, passed, problem, warning
from kdpipe.schemas.errors import Incompatible, KdpipeError
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.progress import Progress, Task, running
from kdpipe.schemas.train_settings import CacheSettings, StudentSettings, TrainSettings

# Without a cache a preset student is sized for sequences of this length.
DEFAULT_LENGTH = 2048
EXPLAINED = {
    "exact": "exact",
    "unbiased": "unbiased",
    "shifted": "unbiased gradient, the value is shifted by a constant",
    "bound": "lower bound",
    "coarse": "coarse, the other ids are one bin",
}


def check_setup(cache: str | None, teacher: str | None, student: str | None, progress: Progress) -> Iterator[Check]:
    collected = _CollectedWarnings(progress)
    setup = _OpenedInputs(collected)
    if cache is not None:
        yield from setup.checked("cache", lambda: setup.check_cache(cache))
    if teacher is not None:
        yield from setup.checked("teacher", lambda: setup.check_teacher(teacher))
    if student is None:
        return
    if setup.cache is not None:
        yield from setup.checked("student", lambda: setup.check_student(student))
        if setup.run is not None:
            yield from trial_steps(setup.run, collected)
    elif setup.tokenizer is not None and cache is None:
        yield from setup.checked("student", lambda: setup.check_student_without_cache(student))


@final
class _OpenedInputs:
    """What has been opened so far: a cache, the teacher's tokenizer, the run of the student."""

    def __init__(self, progress: "_CollectedWarnings") -> None:
        self._progress = progress
        self.cache: Cache | None = None
        self.tokenizer: LoadedTokenizer | None = None
        self.run: Run | None = None

    def checked(self, name: str, check: Callable[[], list[Check]]) -> list[Check]:
        """The checks, or the error of one as a problem; reading from the Hub may take long."""
        try:
            with running(self._progress, Task(name=f"check {name}")):
                return check()
        except KdpipeError as error:
            return [problem(name, error.message, error.hint or "see the message")]

    def check_cache(self, name: str) -> list[Check]:
        cache = open_run_cache(CacheSettings(path=name), self._progress, "train")
        manifest = cache.manifest
        teacher = "no teacher" if manifest.teacher is None else f"teacher {manifest.teacher.name}"
        content = f"{counted(len(cache), 'sequence')}, {counted(cache.n_positions, 'position')}"
        checks = [passed("cache", f"{content}, {manifest.vocabulary_size:,} token ids, {teacher}")]
        checks += _temperatures(cache)
        self.cache = cache
        return checks

    def check_teacher(self, name: str) -> list[Check]:
        settings = CaptureSettings.model_validate({"teacher": {"name": name}})
        backend = backend_of(settings)
        info = backend.describe()
        tokenizer = read_tokenizer(settings, backend)
        plan = plan_capture(settings, tokenizer, backend)
        layers = f", {len(info.widths) - 1} layers of width {info.widths[0]:,}" if info.widths else ""
        parameters = "" if info.n_parameters is None else f"{compact(info.n_parameters)} parameters{layers}, "
        self.tokenizer = tokenizer
        return [
            passed("teacher", f"{info.name}: {parameters}{tokenizer.record.vocabulary_size:,} token ids"),
            *self._teacher_fits_cache(name, tokenizer),
            _teacher_memory(plan),
        ]

    def check_student(self, name: str) -> list[Check]:
        """Plan a run with default settings at the cache's own temperature; its warnings are checks."""
        assert self.cache is not None
        self.run = run = plan_run(_settings_for(self.cache.manifest, self.cache.url, name), self._progress)
        return [
            passed("student", f"{_described(run.student)}; tokenizer and vocabulary fit the cache"),
            *(passed("student", note) for note in run.compatibility.notes),
            *(warning("training", text, "see docs/train.md") for text in self._progress.warnings),
        ]

    def check_student_without_cache(self, name: str) -> list[Check]:
        """Compare tokenizer and vocabulary with the teacher's, and estimate memory."""
        assert self.tokenizer is not None
        record = self.tokenizer.record
        ids = TokenIds(count=record.vocabulary_size, longest=DEFAULT_LENGTH)
        student = resolve_student(StudentSettings(name=name), ids)
        if student.shape.vocabulary_size < ids.count:
            rows = f"{student.shape.vocabulary_size:,} embedding rows"
            raise Incompatible(f"student {name} has {rows} for the teacher's {ids.count:,} token ids", hint=ACROSS)
        if not student.is_fresh:
            own = load_tokenizer(name, chat_template="none")
            if (text := difference(own, self.tokenizer)) is not None:
                raise Incompatible(f"the tokenizer of student {name} differs from the teacher's: {text}", hint=ACROSS)
        device = devices.choose("auto")[0]
        needed = student.shape.n_parameters * BYTES_PER_PARAMETER["adamw"]
        return [
            passed("student", f"{_described(student)}; tokenizer and vocabulary fit the teacher"),
            memory_check(needed, devices.free_memory(device), str(device)),
        ]

    def _teacher_fits_cache(self, name: str, tokenizer: LoadedTokenizer) -> list[Check]:
        if self.cache is None:
            return []
        manifest = self.cache.manifest
        text = same_tokenizer(tokenizer, read_cache_tokenizer(self.cache), manifest)
        if text is not None:
            what = f"the tokenizer of {name} differs from the cache's: {text}"
            return [problem("teacher", what, "use the teacher that made the cache, or make a cache with this one")]
        return [passed("teacher", "its tokenizer is the same as the cache's")]


@final
class _CollectedWarnings:
    """A `Progress` that shows tasks, drops messages and collects warnings."""

    def __init__(self, shown: Progress) -> None:
        self.begin, self.update, self.finish = shown.begin, shown.update, shown.finish
        self.warnings: list[str] = []

    def message(self, text: str, style: TextStyle = "plain") -> None:
        pass

    def warning(self, text: str) -> None:
        self.warnings.append(text)


def _settings_for(manifest: Manifest, cache: str, student: str) -> TrainSettings:
    """Default settings with a loss that this cache can serve."""
    targets = manifest.targets
    losses: dict[str, object] = {"temperature": targets.target_temperature}
    if targets.keep.kind == "none":
        losses = {"mode": "output"}
    elif targets.has_entries and not targets.tail_known:
        losses = {"logit": "renormalized"}
    sections = {"cache": {"path": cache}, "student": {"name": student}, "losses": losses}
    return TrainSettings.model_validate(sections)


def _temperatures(cache: Cache) -> list[Check]:
    """How exact forward KL is at each stored temperature, and the mass of the exact ids there."""
    manifest = cache.manifest
    spec = manifest.targets
    if spec.keep.kind == "none":
        return [passed("targets", "tokens only: train with --mode output")]
    if spec.keep.kind == "state":
        return [passed("temperature", "exact at every temperature: the cache stores hidden states")]
    if not spec.tail_known:
        do = "train with --loss renormalized, or make a cache with kdpipe cache-teacher"
        return [warning("targets", f"{spec.keep.kind} ids without the mass of the others", do)]
    masses = masses_at(cache, sorted({1.0, *spec.temperatures}))
    options = LossOptions(tail_weight=default_tail_weight(spec))
    checks = []
    for temperature, mass in masses.items():
        kind = exactness("forward_kl", spec, temperature, options)
        what = f"{temperature:g}: {EXPLAINED[kind]}; the exact ids hold {mass:.0%} of the teacher's mass"
        if kind in ("bound", "coarse") and mass < LEAST_MASS:
            checks.append(warning("temperature", what, remedy(cache.url, manifest, temperature)))
        else:
            checks.append(passed("temperature", what))
    return checks


def _teacher_memory(plan: CapturePlan) -> Check:
    """Weights and a batch against the free memory of the first device."""
    device = devices.choose("auto")[0]
    free, needed = devices.free_memory(device), memory_of(plan).total
    what = f"needs about {size(needed)}"
    if free < devices.UNKNOWN_FREE:
        what += f", {device} has {size(free)} available"
    if needed <= free:
        return passed("teacher memory", what)
    do = "quantize it (--set teacher.quantize=int8 or int4), use a smaller teacher, or a larger machine"
    if device.type != "cuda":
        return problem("teacher memory", what, do)
    cpu_free = devices.free_memory(devices.CPU)
    if plan.info.weight_bytes > free + cpu_free:
        return problem("teacher memory", f"{what} and the CPU {size(cpu_free)}", do)
    return warning(
        "teacher memory", f"{what}: parts of it are offloaded to the CPU, which is slow", f"{do}, or all GPUs"
    )


def _described(student: ResolvedStudent) -> str:
    return f"{student.name}: {student.shape.model_type}, {compact(student.shape.n_parameters)} parameters"
