"""Evaluations made up, and folders of runs around them.

In: numbers by document. Out: an `Evaluation`; a folder with config.yaml and evaluation.json.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdpipe.pipeline.config_file import as_yaml
from kdpipe.pipeline.evaluation.stored import CONFIG, save_evaluation
from kdpipe.schemas.train_report import ByDocument, Evaluation


def evaluation(
    *,
    cross_entropy: Sequence[float] = (300.0, 310.0, 290.0, 305.0),
    kl_teacher: Sequence[float] | None = (100.0, 90.0, 95.0, 99.0),
    agreed: Sequence[int] = (40, 50, 45, 60),
    numbers: tuple[int, ...] = (0, 1, 2, 3),
    positions: tuple[int, ...] = (100, 100, 100, 100),
    **changed: Any,
) -> Evaluation:
    """Numbers that agree with their sums."""
    n = sum(positions)
    values: dict[str, Any] = {
        "cache_id": "a" * 8,
        "split": "validation",
        "step": 10,
        "positions": n,
        "cross_entropy": sum(cross_entropy) / n,
        "perplexity": 20.0,
        "kl_teacher": None if kl_teacher is None else sum(kl_teacher) / n,
        "kl_teacher_estimate": None if kl_teacher is None else "unbiased",
        "top1_agreement": sum(agreed) / n,
        "ece": 0.04,
        "loss": 1.25,
        "by_entropy": (),
        "by_document": ByDocument(
            numbers=numbers,
            positions=positions,
            cross_entropy=tuple(cross_entropy),
            kl_teacher=None if kl_teacher is None else tuple(kl_teacher),
            agreed=tuple(agreed),
        ),
    }
    return Evaluation(**values | changed)


def run_folder(folder: Path, settings: dict[str, Any], measured: Evaluation | None) -> Path:
    """What a run leaves that comparisons read."""
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text(as_yaml(settings), encoding="utf-8")
    if measured is not None:
        save_evaluation(folder, measured)
    return folder
