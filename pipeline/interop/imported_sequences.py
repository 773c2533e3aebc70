"""The rows of a part as sequences of the cache: documents packed behind each other, each with its targets.

In: `ValidatedRow` rows, which part they make, bytes by token. Out: sequences and blocks, as the writer takes them. The
log p of a next token is known where it is among the kept ids, and NaN elsewhere.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from kdpipe.cache.format.blocks import cut, join
from kdpipe.cache.format.rows import Block
from kdpipe.cache.format.rows import Sequence as StoredSequence
from kdpipe.pipeline.documents.document_packing import pack, to_sequence
from kdpipe.pipeline.documents.segments import Segment
from kdpipe.pipeline.documents.tokenize import DIGEST_BYTES
from kdpipe.pipeline.interop.survey import digest_of
from kdpipe.pipeline.interop.validated_row import ValidatedRow
from kdpipe.schemas.cache_plan import PlannedPart
from kdpipe.schemas.manifest import Manifest


def packed(
    rows: Sequence[ValidatedRow], part: PlannedPart, manifest: Manifest, token_bytes: npt.NDArray[np.uint32]
) -> Iterator[tuple[StoredSequence, Block]]:
    """The sequences of a part, in order."""
    pieces: list[Segment] = []
    blocks: list[Block] = []
    for number, told in enumerate(rows, part.first_document):
        ends = np.append(told.starts[1:], len(told.tokens))
        blocks += cut(_block(told), ends)
        for start, end in zip(told.starts.tolist(), ends.tolist(), strict=True):
            tokens = told.tokens[start:end]
            pieces.append(
                Segment(
                    split=part.split,
                    document=number,
                    offset=start,
                    tokens=tokens,
                    loss_mask=told.loss_mask[start:end],
                    token_bytes=token_bytes[tokens],
                    digest=digest_of(tokens)[:DIGEST_BYTES],
                )
            )
    for group in pack(pieces, manifest.plan.sequence_length, manifest.plan.packed):
        yield to_sequence([pieces[i] for i in group], {}, manifest), join([blocks[i] for i in group])


def _block(told: ValidatedRow) -> Block:
    return Block(
        n_exact=told.counts,
        n_draws=np.zeros(len(told.counts), np.int32),
        ids=told.ids,
        logprobs=told.logprobs,
        log_tail=told.log_tail,
        label_logprob=_labels(told),
    )


def _labels(told: ValidatedRow) -> npt.NDArray[np.float32]:
    """Log p of the next token where it was kept."""
    found = np.full(len(told.tokens), np.nan, np.float32)
    row_of = np.repeat(np.arange(len(told.counts)), told.counts)
    following = np.append(told.tokens[1:], -1)
    is_label = told.ids == following[row_of]
    found[row_of[is_label]] = told.logprobs[is_label]
    return found
