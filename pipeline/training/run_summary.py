"""What a run answers with: its report, and for a dry run what the whole of it would take.

In: the desk, the loop at its end, the evaluation. Out: a `TrainReport`.
"""

import time
from collections.abc import Callable
from pathlib import Path

from kdpipe.pipeline.evaluation.stored import FINAL
from kdpipe.pipeline.losses.terms import TermName
from kdpipe.pipeline.models.memory import peak_device_bytes, peak_process_bytes
from kdpipe.pipeline.training import checkpoints
from kdpipe.pipeline.training.loop import Loop
from kdpipe.pipeline.training.session import Session
from kdpipe.schemas.choices import BestMetric
from kdpipe.schemas.run_report import BestReport, Estimate, TermReport, TrainMemory, TrainReport
from kdpipe.schemas.train_report import Evaluation


def report(desk: Session, loop: Loop, found: Evaluation | None, folder: Path, started: float) -> TrainReport:
    """The whole answer."""
    prepared, state = desk.prepared, loop.state
    prospect, train_state = prepared.prospect, prepared.train_state
    parameters = list(train_state.student.model.parameters())
    best = state.best
    temperature = prepared.curriculum.at(max(0, state.step - 1)).temperature
    return TrainReport(
        run=str(folder),
        final=str(folder / FINAL),
        cache=prospect.cache.url,
        cache_id=prospect.cache.cache_id,
        student=prospect.found.name,
        n_parameters=sum(each.numel() for each in parameters),
        n_trainable=sum(each.numel() for each in parameters if each.requires_grad),
        device=str(train_state.device),
        precision=train_state.precision.name,
        steps=state.step,
        steps_planned=prepared.plan.n_steps,
        resumed_from=loop.began_at or None,
        positions=state.positions,
        epochs=state.place / prepared.plan.n_sequences,
        terms={prepared.name_of(n, temperature): term for n, term in _terms(loop).items()},
        loss=None if loop.last is None else loop.last.loss,
        evaluation=None if found is None else found.summary,
        best=None
        if best is None
        else BestReport(step=best.step, metric=_named(prospect.metric, found), value=best.value),
        skipped=state.guard.skipped,
        rollbacks=state.guard.rollbacks,
        positions_per_second=desk.book.positions_per_second,
        waiting_share=desk.book.waiting_share,
        memory=TrainMemory(
            weights=sum(each.numel() * each.element_size() for each in parameters),
            peak_process=peak_process_bytes(),
            peak_device=peak_device_bytes(train_state.device),
        ),
        seconds=time.perf_counter() - started,
    )


def estimate(desk: Session, loop: Loop, folder: Path) -> Estimate:
    """What the whole run takes, from the steps that were made, one evaluation and one checkpoint there and back."""
    plan = desk.prepared.plan
    evaluating = 0.0
    if desk.measure is not None:
        desk.measure.of_step(loop.state)
        evaluating = desk.measure.seconds
    saving = _seconds_of(lambda: desk.keeper.save(loop.state))
    path = checkpoints.latest(folder, desk.prepared.prospect.record, desk.watch.warn)
    assert path is not None, "a checkpoint was just written"
    desk.keeper.resume(path)
    steps = plan.n_steps * (desk.book.seconds_per_step or 0.0)
    evaluations = -(-plan.n_steps // plan.evaluate_every) * evaluating
    saves = -(-plan.n_steps // plan.save_every) * saving
    return Estimate(seconds=steps + evaluations + saves, peak_bytes=peak_process_bytes() or 0)


def _named(metric: BestMetric, evaluation: Evaluation | None) -> str:
    """What a metric is called; a shifted loss is called so."""
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
