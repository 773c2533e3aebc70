"""The end of a run: evaluate the chosen student, save it with its card, and check that it loads.

In: a `Session` and the state after the last step. Out: OUT/final, OUT/evaluation.json. A finished run is left as it is,
unless another of its students is chosen now.
"""

from dataclasses import dataclass
from importlib.metadata import version
from typing import Final

from kdpipe.pipeline.evaluation.stored import FINAL, load_evaluation, save_evaluation
from kdpipe.pipeline.losses.terms import ActiveTerms
from kdpipe.pipeline.models.model_names import is_placeholder
from kdpipe.pipeline.students.model_card import ModelCard, rendered
from kdpipe.pipeline.students.saving import save_student
from kdpipe.pipeline.students.verify_saved import cached_ids, check_reload
from kdpipe.pipeline.training import completed_run
from kdpipe.pipeline.training.session import Session
from kdpipe.schemas.checkpoint import LoopState
from kdpipe.schemas.progress import Task, running
from kdpipe.schemas.run_report import TrainReport
from kdpipe.schemas.train_report import Evaluation

# For caches written before teachers had names.
UNNAMED = "an unnamed teacher"
VERSIONS: Final = ("kdpipe", "torch", "transformers")


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedStudent:
    """The student in final/; `report` is that of the earlier call that saved it, if one did."""

    step: int
    evaluation: Evaluation | None
    report: TrainReport | None = None


def save_final(session: Session, state: LoopState) -> SavedStudent:
    """Save the chosen student, unless an earlier call has."""
    run, folder, progress = session.run, session.folder, session.progress
    chosen = session.checkpoints.restore_best(state) if run.settings.saving.final == "best" else state
    earlier = None if session.log.has_steps else completed_run.load(folder)
    if earlier is not None and earlier.step == chosen.step:
        if (problem := completed_run.problem(folder, earlier)) is None:
            report = completed_run.relocated(earlier.report, folder)
            return SavedStudent(step=chosen.step, evaluation=load_evaluation(folder), report=report)
        progress.warning(f"{problem}: saving the student of step {chosen.step:,} again")
    evaluation: Evaluation | None = None
    if session.validation is not None:
        evaluation = session.validation.of_step(chosen)
        save_evaluation(folder, evaluation)
    student = session.train_state.student
    student.model.eval()
    card = rendered(_card(session, chosen, evaluation))
    with running(progress, Task(name="save student")):
        notes = save_student(student, folder / FINAL, run.compatibility.tokenizer_files, card)
    for note in notes:
        progress.message(note)
    n_parameters = sum(parameter.numel() for parameter in student.model.parameters())
    with running(progress, Task(name="check saved student")):
        check_reload(
            student.logits,
            folder / FINAL,
            cached_ids(run.cache),
            student.device,
            n_parameters=n_parameters,
            trusted=run.settings.student.trust_remote_code,
        )
    return SavedStudent(step=chosen.step, evaluation=evaluation)


def _card(session: Session, state: LoopState, evaluation: Evaluation | None) -> ModelCard:
    run, teacher = session.run, session.run.cache.manifest.teacher
    last: ActiveTerms = run.curriculum.at(max(0, state.step - 1))
    summary = {} if evaluation is None else evaluation.summary
    return ModelCard(
        name=session.folder.resolve().name,
        teacher=None if teacher is None else UNNAMED if is_placeholder(teacher.name) else teacher.name,
        teacher_revision=None if teacher is None else teacher.revision,
        teacher_license=None if teacher is None else teacher.license,
        base=run.student.origin,
        base_license=None if run.student.is_fresh else run.student.shape.license,
        cache_id=run.cache.cache_id,
        losses={run.term_name(term, last.temperature): weight for term, weight in last.weights.items()},
        temperature=last.temperature,
        optimizer=run.optimizer_reason,
        steps=state.step,
        positions=state.positions,
        seed=run.settings.seed,
        metrics={name: value for name, value in summary.items() if isinstance(value, float)},
        versions={name: version(name) for name in VERSIONS},
        is_adapter=session.train_state.student.adapter is not None,
    )
