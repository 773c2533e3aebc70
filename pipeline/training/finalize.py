"""The end of a run: the student that is kept is measured, saved with its card, and read again in a fresh process.

In: the desk, the state after the last step. Out: OUT/final, OUT/evaluation.json. A finished run stays as it is, unless
another of its students is asked for now.
"""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from kdpipe.pipeline.evaluation.stored import FINAL, load_evaluation, save_evaluation
from kdpipe.pipeline.losses.terms import ActiveTerms
from kdpipe.pipeline.models.model_names import is_placeholder
from kdpipe.pipeline.students.model_card import ModelCard, rendered
from kdpipe.pipeline.students.saving import save_student
from kdpipe.pipeline.students.verify_saved import cached_ids, check_reload
from kdpipe.pipeline.training import completed_run as finished_run
from kdpipe.pipeline.training.session import Session
from kdpipe.schemas.checkpoint import LoopState
from kdpipe.schemas.run_report import TrainReport
from kdpipe.schemas.train_report import Evaluation

# Of caches that were made before teachers had names of their own.
UNNAMED = "an unnamed teacher"
VERSIONS: Final = ("kdpipe", "torch", "transformers")


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalStudent:
    """The student in final/: its step, its evaluation where the cache has a validation split, and the report of the run
    where it was saved by an earlier call."""

    step: int
    evaluation: Evaluation | None
    report: TrainReport | None = None


def finish(desk: Session, state: LoopState, folder: Path) -> FinalStudent:
    """Save the student as people take it away, unless an earlier call has."""
    prospect = desk.prepared.prospect
    chosen = desk.keeper.take_best(state) if prospect.settings.saving.final == "best" else state
    found: Evaluation | None = None
    earlier = None if desk.book.has_steps else finished_run.load(folder)
    if earlier is not None and earlier.step == chosen.step:
        if (wrong := finished_run.problem(folder, earlier)) is None:
            return FinalStudent(
                step=chosen.step,
                evaluation=load_evaluation(folder),
                report=finished_run.placed(earlier.report, folder),
            )
        desk.watch.warn(f"{wrong}: the student of step {chosen.step:,} is saved again")
    if desk.measure is not None:
        found = desk.measure.of_step(chosen)
        save_evaluation(folder, found)
    student = desk.prepared.train_state.student
    student.model.eval()
    card = rendered(_card(desk, chosen, found, folder.resolve().name))
    for note in save_student(student, folder / FINAL, prospect.fit.tokenizer_files, card):
        desk.watch.say(note)
    trusted = prospect.settings.student.trust_remote_code
    desk.watch.say("saved; read again in a fresh process")
    check_reload(student.logits, folder / FINAL, cached_ids(prospect.cache), student.device, trusted=trusted)
    return FinalStudent(step=chosen.step, evaluation=found)


def _card(desk: Session, state: LoopState, found: Evaluation | None, name: str) -> ModelCard:
    prospect = desk.prepared.prospect
    teacher, base = prospect.cache.manifest.teacher, prospect.found
    last: ActiveTerms = prospect.curriculum.at(max(0, state.step - 1))
    metrics = {} if found is None else {n: v for n, v in found.summary.items() if isinstance(v, float)}
    return ModelCard(
        name=name,
        teacher=None if teacher is None else UNNAMED if is_placeholder(teacher.name) else teacher.name,
        teacher_revision=None if teacher is None else teacher.revision,
        teacher_license=None if teacher is None else teacher.license,
        base=base.origin,
        base_license=None if base.is_fresh else base.shape.license,
        cache_id=prospect.cache.cache_id,
        losses={desk.prepared.name_of(term, last.temperature): weight for term, weight in last.weights.items()},
        temperature=last.temperature,
        optimizer=prospect.optimizer_reason,
        steps=state.step,
        positions=state.positions,
        seed=prospect.settings.seed,
        metrics=metrics,
        versions={name: version(name) for name in VERSIONS},
        is_adapter=desk.prepared.train_state.student.adapter is not None,
    )
