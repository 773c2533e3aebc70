"""What is taken from a teacher once: projections fitted to some of what it reads, however long documents are."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from kdpipe.cache.format.rows import Block
from kdpipe.pipeline.capture.capture_teacher import CaptureTeacher, fitted_tables
from kdpipe.pipeline.documents.segments import Segment
from kdpipe.pipeline.targets.request import TargetRequest
from kdpipe.pipeline.teachers import CaptureResult
from kdpipe.schemas import manifest
from kdpipe.schemas.targets import HiddenSpec, PcaProjection, TargetSpec, TopK, Vector
from support.teachers import pieces_of

WIDTH = 6


class Counting:
    """A teacher of random states that remembers what it was asked to read."""

    def __init__(self) -> None:
        self.read: list[tuple[int, int]] = []

    @property
    def facts(self) -> manifest.TeacherRecord:
        return manifest.TeacherRecord(name="counting")

    def answers(self, batches: Iterable[Sequence[Segment]], asked: TargetRequest) -> Iterator[CaptureResult]:
        random = np.random.default_rng(0)
        for batch in batches:
            self.read += [(piece.document, piece.offset) for piece in batch]
            n = sum(len(piece) for piece in batch)
            nothing = np.zeros(n, np.int32)
            states = {vector.layer: random.normal(size=(n, WIDTH)).astype(np.float32) for vector in asked.hidden.rows}
            yield CaptureResult(
                block=Block(
                    n_exact=nothing,
                    n_draws=nothing,
                    ids=np.zeros(0, np.int32),
                    logprobs=np.zeros(0, np.float32),
                    hidden=states,
                )
            )

    def measured(self) -> None:
        """Nothing."""


def test_a_projection_is_fitted_to_the_first_piece_of_each_document() -> None:
    teacher, targets = Counting(), TargetSpec(keep=TopK(k=2))
    fitted = Vector(layer=1, width=3, group=3, projection=PcaProjection(input_width=WIDTH))
    hidden = HiddenSpec(rows=(fitted,))
    speaker = CaptureTeacher(
        teacher=teacher, facts=teacher.facts, targets=targets, hidden=hidden, sequence_length=8, batch_tokens=16
    )
    pieces = [replace(piece, offset=8 * k) for piece in pieces_of([8, 8, 5], 50) for k in range(40)]
    tables = fitted_tables(speaker, pieces, TargetRequest(targets=targets, hidden=hidden, vocabulary_size=50, seed=0))
    assert sorted(teacher.read) == [(0, 0), (1, 0), (2, 0)]
    assert tables["pca_rows_1"].shape == (3, WIDTH) and tables["pca_rows_1_mean"].shape == (WIDTH,)
