"""`RunSetup`: what a run is about to do, shown before the first step and part of the report.

In: a planned run and its loaded student. Out: numbers for programs, and aligned lines of at most 80 columns.
"""

import textwrap
from collections.abc import Iterator
from typing import Final

from kdpipe.pipeline.training import schedules
from kdpipe.pipeline.training.run import Run
from kdpipe.pipeline.training.train_state import TrainState
from kdpipe.schemas.counts import compact, counted
from kdpipe.schemas.run_report import CacheSetup, GroupSetup, OptimizerSetup, RunSetup, StudentSetup, TeacherSetup

COLUMNS: Final = 80
# Width of the names at the start of lines.
INDENT: Final = 12
SOURCES: Final = {"preset": "random init", "config": "random init", "folder": "pretrained", "hub": "pretrained"}


def run_setup(run: Run, train_state: TrainState) -> RunSetup:
    settings, plan, terms = run.settings, run.plan, run.curriculum.at(run.plan.n_steps // 2)
    student, teacher, cache = _student(run, train_state), _teacher(run), _cache(run)
    optimizer = _optimizer(run, train_state)
    return RunSetup(
        student=student,
        teacher=teacher,
        cache=cache,
        losses={run.term_name(name, terms.temperature): weight for name, weight in terms.weights.items()},
        temperature=terms.temperature,
        optimizer=optimizer,
        schedule=settings.schedule.kind,
        warmup_steps=plan.n_warmup,
        guard=settings.guard.preset,
        batch_size=plan.batch_size,
        micro_batch_size=run.micro_batch_size,
        accumulate=plan.accumulate,
        steps=plan.n_steps,
        epochs=plan.epochs,
        evaluate_every=plan.evaluate_every,
        save_every=plan.save_every,
        keep_checkpoints=settings.saving.keep,
    )


def setup_lines(run: Run, setup: RunSetup) -> list[str]:
    """The setup as text; a long line is continued below its text."""
    lines = [
        *_student_lines(setup.student, setup.teacher, setup.cache),
        *run.curriculum.lines(run.term_name),
        *_optimizer_lines(setup.optimizer),
        *schedules.lines(run.settings.schedule, run.plan),
        f"{'guard':<{INDENT}}{_guard(run)}",
    ]
    if run.micro_batch_size < run.plan.batch_size:
        lines.append(f"{'micro-batch':<{INDENT}}{counted(run.micro_batch_size, 'sequence')}")
    return [_wrapped(line) for line in lines]


def _wrapped(line: str) -> str:
    return textwrap.fill(line, COLUMNS, subsequent_indent=" " * INDENT, break_long_words=False, break_on_hyphens=False)


def _student(run: Run, train_state: TrainState) -> StudentSetup:
    parameters = list(train_state.student.model.parameters())
    return StudentSetup(
        name=run.student.name,
        source=run.student.kind,
        n_parameters=sum(parameter.numel() for parameter in parameters),
        n_trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        vocabulary_size=run.student.shape.vocabulary_size,
        device=str(train_state.device),
        precision=train_state.precision.name,
    )


def _teacher(run: Run) -> TeacherSetup | None:
    record = run.cache.manifest.teacher
    if record is None:
        return None
    return TeacherSetup(name=record.name, n_layers=record.n_layers, hidden_size=record.hidden_size)


def _cache(run: Run) -> CacheSetup:
    manifest, validation = run.cache.manifest, run.validation
    return CacheSetup(
        path=run.settings.cache.path or run.cache.url,
        cache_id=run.cache.cache_id,
        targets=manifest.targets.keep.kind,
        vocabulary_size=manifest.vocabulary_size,
        sequence_length=manifest.plan.sequence_length,
        sequences=len(run.cache),
        positions=run.cache.n_positions,
        validation_sequences=0 if validation is None else len(validation),
        validation_positions=0 if validation is None else validation.n_positions,
    )


def _optimizer(run: Run, train_state: TrainState) -> OptimizerSetup:
    settings, groups = run.settings.optimizer, train_state.optimizer.param_groups
    return OptimizerSetup(
        kind=str(settings.kind),
        groups={
            group["group"]: GroupSetup(
                optimizer=group["optimizer"],
                n_parameters=sum(parameter.numel() for parameter in group["params"]),
                lr=group["base_lr"],
            )
            for group in groups
        },
        reason=run.rates_reason,
        weight_decay=settings.weight_decay,
        clip=run.guard.clip,
    )


def _student_lines(student: StudentSetup, teacher: TeacherSetup | None, cache: CacheSetup) -> Iterator[str]:
    n_trainable = student.n_trainable
    trainable = "" if n_trainable == student.n_parameters else f", {n_trainable:,} trainable"
    yield (
        f"{'student':<{INDENT}}{student.name}: {SOURCES[student.source]}, {student.n_parameters:,} parameters"
        f"{trainable}, {student.precision} on {student.device}"
    )
    if teacher is not None:
        sizes = [
            f"{teacher.n_layers:,} layers" if teacher.n_layers is not None else "",
            f"hidden size {teacher.hidden_size:,}" if teacher.hidden_size is not None else "",
        ]
        yield f"{'teacher':<{INDENT}}{', '.join([teacher.name, *filter(None, sizes)])}"
    targets = "tokens only" if cache.targets == "none" else f"{cache.targets} targets"
    yield (
        f"{'cache':<{INDENT}}{cache.path}: {targets}, vocabulary {cache.vocabulary_size:,}, "
        f"{cache.positions:,} positions for training, {cache.validation_positions:,} for validation"
    )


def _optimizer_lines(optimizer: OptimizerSetup) -> Iterator[str]:
    total = sum(group.n_parameters for group in optimizer.groups.values())
    for number, (name, group) in enumerate(optimizer.groups.items()):
        yield (
            f"{'' if number else 'optimizer':<{INDENT}}{group.optimizer} for {compact(group.n_parameters)} {name} "
            f"({group.n_parameters / total:.0%}), peak learning rate {group.lr:.3g}"
        )
    yield f"{'':<{INDENT}}{optimizer.reason}"
    yield f"{'':<{INDENT}}weight decay {optimizer.weight_decay:g}, gradient norm clipped at {optimizer.clip:g}"


def _guard(run: Run) -> str:
    guard = run.guard
    limits = [f"gradient norms above {guard.median_factor:g} x their median"]
    if guard.skip_gradient_norm is not None:
        limits.append(f"above {guard.skip_gradient_norm:g}")
    after = f"; after {guard.patience} in a row rolls back, at most {counted(guard.rollbacks, 'time')}"
    return (
        f"{run.settings.guard.preset}: skips steps that are not finite and {' or '.join(limits)}"
        f"{after if guard.rollbacks else f'; stops after {guard.patience} in a row'}"
    )
