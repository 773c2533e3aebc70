"""The report of a run, and for a dry run an estimate of the whole run.

In: a `Session`, the loop at its end, the evaluation. Out: a `TrainReport`.
"""

import time
from collections.abc import Callable, Sequence

from kdpipe.pipeline.evaluation.stored import FINAL
from kdpipe.pipeline.losses.terms import TermName
from kdpipe.pipeline.models.memory import peak_device_bytes, peak_process_bytes
from kdpipe.pipeline.training import checkpoints
from kdpipe.pipeline.training.loop import Loop
from kdpipe.pipeline.training.optimizers import learning_rates
from kdpipe.pipeline.training.run import Run
from kdpipe.pipeline.training.session import Session
from kdpipe.pipeline.training.thread_choice import first_batch
from kdpipe.pipeline.training.train_state import TrainState
from kdpipe.schemas.choices import BestMetric
from kdpipe.schemas.run_report import BestReport, DryStep, Estimate, TermReport, TrainMemory, TrainReport
from kdpipe.schemas.train_report import Evaluation

Shapes = dict[str, tuple[int, ...]]


def report(session: Session, loop: Loop, evaluation: Evaluation | None, started: float) -> TrainReport:
    """The report of a run that began at the time `started`."""
    run, state, train_state, log = session.run, loop.state, session.train_state, session.log
    parameters, best = list(train_state.student.model.parameters()), state.best
    temperature = run.curriculum.at(max(0, state.step - 1)).temperature
    return TrainReport(
        run=str(session.folder),
        final=str(session.folder / FINAL),
        cache=run.cache.url,
        cache_id=run.cache.cache_id,
        student=run.student.name,
        n_parameters=sum(parameter.numel() for parameter in parameters),
        n_trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        device=str(train_state.device),
        precision=train_state.precision.name,
        steps=state.step,
        steps_planned=run.plan.n_steps,
        resumed_from=loop.began_at or None,
        positions=state.positions,
        epochs=state.place / run.plan.n_sequences,
        terms={run.term_name(name, temperature): term for name, term in _terms(loop).items()},
        loss=None if loop.last is None else loop.last.loss,
        evaluation=None if evaluation is None else evaluation.summary,
        samples=None if evaluation is None or evaluation.step is None else session.samples.of_step(evaluation.step),
        best=None
        if best is None
        else BestReport(step=best.step, metric=_metric_name(run.metric, evaluation), value=best.value),
        skipped=state.guard.skipped,
        rollbacks=state.guard.rollbacks,
        positions_per_second=log.positions_per_second,
        waiting_share=log.waiting_share,
        memory=TrainMemory(
            weights=sum(parameter.numel() * parameter.element_size() for parameter in parameters),
            peak_process=peak_process_bytes(),
            peak_device=peak_device_bytes(train_state.device),
        ),
        seconds=time.perf_counter() - started,
    )


def dry_step(session: Session, loop: Loop) -> DryStep:
    """The newest step."""
    assert loop.last is not None
    temperature = session.run.curriculum.at(loop.state.step - 1).temperature
    return DryStep(
        step=loop.state.step,
        loss=loop.last.loss,
        terms={session.run.term_name(name, temperature): term for name, term in _terms(loop).items()},
        rates=learning_rates(session.train_state.optimizer),
        gradient_norm=loop.last.gradient_norm,
    )


def estimate(session: Session, loop: Loop, dry_steps: Sequence[DryStep] = ()) -> Estimate:
    """Extrapolate the whole run from its first steps, one evaluation, and one checkpoint written and read."""
    plan, policy = session.run.plan, session.checkpoints
    evaluating = 0.0
    if session.validation is not None:
        session.validation.of_step(loop.state)
        session.samples.generate()
        evaluating = session.validation.seconds + session.samples.seconds
    saving = _seconds_of(lambda: policy.save(loop.state))
    path = checkpoints.latest(session.folder, session.run.record, session.progress.warning)
    assert path is not None, "a checkpoint was just written"
    policy.resume(path)
    steps = plan.n_steps * (session.log.seconds_per_step or 0.0)
    evaluations = -(-plan.n_steps // plan.evaluate_every) * evaluating
    saves = -(-plan.n_steps // plan.save_every) * saving
    student_shapes, teacher_shapes = shapes_of(session.run, session.train_state)
    return Estimate(
        seconds=steps + evaluations + saves,
        peak_bytes=peak_process_bytes() or 0,
        peak_device_bytes=peak_device_bytes(session.train_state.device),
        steps=tuple(dry_steps),
        student_shapes=student_shapes,
        teacher_shapes=teacher_shapes,
    )


def shapes_of(run: Run, train_state: TrainState) -> tuple[Shapes, Shapes]:
    """Shapes of the student's and the teacher's tensors of the first micro-batch.

    Logits are those of all its rows; they are computed in chunks.
    """
    batch = first_batch(run, train_state).batches[0]
    info, (n_sequences, length) = run.student.shape, batch.tokens_BT.shape
    n_rows = len(batch.labels_N)
    student: Shapes = {
        "input_ids": (n_sequences, length),
        "last hidden state": (n_sequences, length, info.last_width),
        "logits": (n_rows, train_state.student.vocabulary_size),
    }
    for layer in sorted(train_state.objective.layers):
        student[f"hidden states {layer}"] = (n_sequences, length, info.widths[layer])
    teacher: Shapes = {}
    if batch.targets is not None and batch.targets.state_NH is not None:
        teacher["last hidden state"] = tuple(batch.targets.state_NH.shape)
    elif batch.targets is not None:
        teacher["token ids"] = tuple(batch.targets.ids_NK.shape)
        teacher["log-probabilities"] = tuple(batch.targets.logprobs_NK.shape)
    teacher |= {f"hidden states {layer}": tuple(states.shape) for layer, states in batch.hidden.items()}
    teacher |= {f"pooled states {layer}": tuple(states.shape) for layer, states in batch.pooled.items()}
    return student, teacher


def _metric_name(metric: BestMetric, evaluation: Evaluation | None) -> str:
    return evaluation.loss_name if metric == "loss" and evaluation is not None else metric


def _seconds_of(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _terms(loop: Loop) -> dict[TermName, TermReport]:
    if loop.last is None:
        return {}
    loss = loop.last.loss
    return {
        name: TermReport(
            raw=term.raw,
            weight=term.weight,
            weighted=term.weighted,
            share=term.weighted / loss if loss else None,
        )
        for name, term in loop.last.terms.items()
    }
