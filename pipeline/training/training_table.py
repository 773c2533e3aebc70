"""The first steps and the evaluations of a run as aligned rows of at most 80 columns.

In: step results and evaluations. Out: messages: a header, numbers below it. Terms that do not fit are left out;
metrics.jsonl has them.
"""

from collections.abc import Mapping
from typing import Final, final

from kdpipe.pipeline.losses.terms import ActiveTerms, factor
from kdpipe.pipeline.training.run import Run
from kdpipe.pipeline.training.step import StepResult
from kdpipe.schemas.choices import BestMetric
from kdpipe.schemas.progress import Progress
from kdpipe.schemas.train_report import Evaluation

WIDTH, GAP = 80, "  "
# Columns are at least as wide as their usual numbers.
MIN_WIDTHS: Final = {"step": 8, "top-1": 6, "ECE": 5}
METRIC_COLUMNS: Final[dict[BestMetric, str]] = {
    "cross_entropy": "val CE",
    "kl_teacher": "KL to teacher",
    "top1_agreement": "top-1",
}


@final
class TrainingTable:
    """Prints rows; the first of each kind, and one with other columns, starts with a header."""

    def __init__(self, run: Run, progress: Progress) -> None:
        self._run, self._progress = run, progress
        self._header, self._has_evaluations = "", False

    def add_step(self, step: int, result: StepResult, terms: ActiveTerms) -> None:
        """A step with the mean of each term, up to the first evaluation; step 1 also with its loss as a sum."""
        if self._has_evaluations:
            return
        if step == 1:
            self._progress.message("\n".join(self._sum_of_terms(result, terms)))
        cells = {
            "step": f"{step:,}",
            self._run.loss_name(terms): f"{result.loss:.4f}",
            "grad norm": f"{result.gradient_norm:.4g}",
        }
        if len(result.terms) > 1:
            names = {name: self._run.term_name(name, terms.temperature) for name in result.terms}
            cells |= {names[name]: f"{term.raw:.4f}" for name, term in result.terms.items()}
        self._print(cells, is_best=False)

    def add_evaluation(
        self, step: int, evaluation: Evaluation, *, gap: float | None, is_estimate: bool, is_best: bool
    ) -> None:
        """An evaluation; `gap` is its distance to the training loss, `~` marks one that is an estimate."""
        self._has_evaluations = True
        cells = {"step": f"{step:,}"}
        if evaluation.loss is not None:
            cells[_loss_column(evaluation)] = f"{evaluation.loss:.4f}"
            cells["vs train"] = "-" if gap is None else f"{'~' if is_estimate else ''}{gap:+.4f}"
        cells["val CE"] = f"{evaluation.cross_entropy:.4f}"
        if evaluation.kl_teacher is not None:
            cells["KL to teacher"] = f"{evaluation.kl_teacher:.4f}"
        if evaluation.top1_agreement is not None:
            cells["top-1"] = f"{evaluation.top1_agreement:.1%}"
        cells["ECE"] = f"{evaluation.ece:.1%}"
        metric = METRIC_COLUMNS.get(self._run.metric, _loss_column(evaluation))
        if metric in cells:
            cells[metric] += "*" if is_best else " "
        self._print(cells, is_best=is_best)

    def _print(self, cells: Mapping[str, str], *, is_best: bool) -> None:
        columns = {name: max(len(name), MIN_WIDTHS.get(name, 9)) for name in cells}
        while len(GAP.join(" " * width for width in columns.values())) >= WIDTH:
            columns.popitem()
        header = GAP.join(f"{name:>{width}}" for name, width in columns.items())
        if header != self._header:
            self._progress.message(header, "heading")
        self._header = header
        row = GAP.join(f"{cells[name]:>{width}}" for name, width in columns.items())
        self._progress.message(row.rstrip(), "best" if is_best else "plain")

    def _sum_of_terms(self, result: StepResult, terms: ActiveTerms) -> list[str]:
        """The loss of a step, and a line per term: raw x weight (x T² or T) = contribution to the loss."""
        rows = []
        for name, term in result.terms.items():
            by = factor(name, 1.0 if name == "ce" else terms.temperature)
            share = f" ({term.weighted / result.loss:.0%})" if result.loss else ""
            cells = (
                self._run.term_name(name, terms.temperature),
                f"  {term.raw:.4f}",
                f" x {term.weight:.4g}",
                f" x {by:g}" if by != 1 else "",
                f" = {term.weighted:.4f}",
                share,
                f" over {term.count:,}",
            )
            rows.append(cells)
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [f"step 1      {result.tokens:,} tokens in {result.shapes}"]
        for name, *numbers in rows:
            texts = (f"{text:>{width}}" for text, width in zip(numbers, widths[1:], strict=True))
            lines.append(f"  {name:<{max(10, widths[0])}}{''.join(texts)}".rstrip())
        return lines


def _loss_column(evaluation: Evaluation) -> str:
    return f"val {evaluation.loss_name}"
