"""The rows of a part as sequences of the cache: documents packed behind each other, each with its targets.

In: `ValidatedRow` rows, which part they make, bytes by token. Out: sequences and blocks, as the writer takes them. The
log p of a next token is known where it is among the kept ids, and NaN elsewhere.
"""

import json
import re
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from kdpipe.cache.format.blocks import cut, join
from kdpipe.cache.format.invariants import MAX_TOKEN_BYTES
from kdpipe.cache.format.rows import Block
from kdpipe.cache.format.rows import Sequence as StoredSequence
from kdpipe.pipeline.documents.segments import Segment, pack, to_sequence
from kdpipe.pipeline.documents.tokenize import DIGEST_BYTES
from kdpipe.pipeline.interop.survey import digest_of
from kdpipe.pipeline.interop.validated_row import ValidatedRow
from kdpipe.pipeline.tokenizers.tokenizer import LoadedTokenizer
from kdpipe.schemas.cache_plan import PlannedPart
from kdpipe.schemas.manifest import Manifest

BYTE_TOKEN = re.compile(r"^<0x[0-9A-F]{2}>$")


def packed(
    rows: Sequence[ValidatedRow], part: PlannedPart, manifest: Manifest, token_bytes: npt.NDArray[np.uint32]
) -> Iterator[tuple[StoredSequence, Block]]:
    """The sequences of a part, in order."""
    segments: list[Segment] = []
    blocks: list[Block] = []
    for number, told in enumerate(rows, part.first_document):
        ends = np.append(told.starts[1:], len(told.tokens))
        blocks += cut(_block(told), ends)
        for start, end in zip(told.starts.tolist(), ends.tolist(), strict=True):
            tokens = told.tokens[start:end]
            segments.append(
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
    for group in pack(segments, manifest.plan.sequence_length, manifest.plan.packed):
        yield to_sequence([segments[i] for i in group], {}, manifest), join([blocks[i] for i in group])


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


def token_sizes(tokenizer: LoadedTokenizer) -> npt.NDArray[np.uint32]:
    """Bytes of text by id."""
    fast = tokenizer.fast
    sizes = np.zeros(tokenizer.record.vocabulary_size, np.uint32)
    spelled = {i: token for token, i in fast.get_vocab().items()}
    added = {i: token.content for i, token in fast.added_tokens_decoder.items()}
    special = {i for i, token in fast.added_tokens_decoder.items() if token.special} | set(fast.all_special_ids)
    plain = sorted(spelled.keys() - added.keys() - special)
    if _is_byte_level(tokenizer):
        found = [len(spelled[i]) for i in plain]
    else:
        found = _decoded(tokenizer, plain, spelled)
    sizes[plain] = np.minimum(found, MAX_TOKEN_BYTES)
    for i, text in added.items():
        sizes[i] = 0 if i in special else min(len(text.encode()), MAX_TOKEN_BYTES)
    return sizes


def _is_byte_level(tokenizer: LoadedTokenizer) -> bool:
    """Whether the decoder turns each character of a token into a byte."""
    decoder = json.loads(tokenizer.fast.backend_tokenizer.to_str())["decoder"] or {}
    steps = decoder.get("decoders", [decoder])
    return any(step.get("type") == "ByteLevel" for step in steps)


def _decoded(tokenizer: LoadedTokenizer, ids: list[int], spelled: dict[int, str]) -> list[int]:
    """Lengths of ids decoded behind another one, which keeps their leading space."""
    if not ids:
        return []
    decode = tokenizer.fast.backend_tokenizer.decode_batch
    before = len(decode([[ids[0]]], skip_special_tokens=False)[0].encode())
    texts = decode([[ids[0], i] for i in ids], skip_special_tokens=False)
    return [
        1 if BYTE_TOKEN.match(spelled[i]) else max(0, len(text.encode()) - before)
        for i, text in zip(ids, texts, strict=True)
    ]
