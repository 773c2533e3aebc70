"""Tables that a teacher gives once: projections fitted to the first segment of each document."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from kdpipe.cache.format.rows import Block
from kdpipe.pipeline.capture.capture_teacher import CaptureTeacher, fitted_tables
from kdpipe.pipeline.documents.segments import Segment
from kdpipe.pipeline.targets.request import TargetRequest
from kdpipe.pipeline.teachers import CaptureResult
from kdpipe.pipeline.teachers.tokens_only import TokensOnlyTeacher
from kdpipe.schemas.target_kinds import TopK
from kdpipe.schemas.targets import HiddenSpec, PcaProjection, TargetSpec, Vector
from support.teachers import segments_of

WIDTH = 6


class Counting(TokensOnlyTeacher):
    """A teacher of random states that records which segments it read."""

    def __init__(self) -> None:
        self.read: list[tuple[int, int]] = []

    def predict(self, batches: Iterable[Sequence[Segment]], request: TargetRequest) -> Iterator[CaptureResult]:
        random = np.random.default_rng(0)
        for batch in batches:
            self.read += [(segment.document, segment.offset) for segment in batch]
            n = sum(len(segment) for segment in batch)
            nothing = np.zeros(n, np.int32)
            states = {vector.layer: random.normal(size=(n, WIDTH)).astype(np.float32) for vector in request.hidden.rows}
            yield CaptureResult(
                block=Block(
                    n_exact=nothing,
                    n_draws=nothing,
                    ids=np.zeros(0, np.int32),
                    logprobs=np.zeros(0, np.float32),
                    hidden=states,
                )
            )


def test_a_projection_is_fitted_to_the_first_segment_of_each_document() -> None:
    counting, targets = Counting(), TargetSpec(keep=TopK(k=2))
    fitted = Vector(layer=1, width=3, group=3, projection=PcaProjection(input_width=WIDTH))
    hidden = HiddenSpec(rows=(fitted,))
    teacher = CaptureTeacher(
        model=counting, record=None, targets=targets, hidden=hidden, sequence_length=8, batch_tokens=16
    )
    segments = [replace(segment, offset=8 * k) for segment in segments_of([8, 8, 5], 50) for k in range(40)]
    tables = fitted_tables(teacher, segments, TargetRequest(targets=targets, hidden=hidden, vocabulary_size=50, seed=0))
    assert sorted(counting.read) == [(0, 0), (1, 0), (2, 0)]
    assert tables["pca_rows_1"].shape == (3, WIDTH) and tables["pca_rows_1_mean"].shape == (WIDTH,)
