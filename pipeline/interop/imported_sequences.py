"""Validated rows as sequences of a cache: documents packed together, each with its targets.

In: the `ValidatedRow`s of a part, and bytes of text per token id. Out: sequences and blocks for the cache writer. The
log p of a next token is known if it is among the stored ids, and NaN otherwise.
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
    for number, row in enumerate(rows, part.first_document):
        ends = np.append(row.starts[1:], len(row.tokens))
        blocks += cut(_block(row), ends)
        for start, end in zip(row.starts.tolist(), ends.tolist(), strict=True):
            tokens = row.tokens[start:end]
            segments.append(
                Segment(
                    split=part.split,
                    document=number,
                    offset=start,
                    tokens=tokens,
                    loss_mask=row.loss_mask[start:end],
                    token_bytes=token_bytes[tokens],
                    digest=digest_of(tokens)[:DIGEST_BYTES],
                )
            )
    for group in pack(segments, manifest.plan.sequence_length, manifest.plan.packed):
        yield to_sequence([segments[i] for i in group], {}, manifest), join([blocks[i] for i in group])


def _block(row: ValidatedRow) -> Block:
    return Block(
        n_exact=row.counts,
        n_draws=np.zeros(len(row.counts), np.int32),
        ids=row.ids,
        logprobs=row.logprobs,
        log_tail=row.log_tail,
        label_logprob=_label_logprobs(row),
    )


def _label_logprobs(row: ValidatedRow) -> npt.NDArray[np.float32]:
    logprobs = np.full(len(row.tokens), np.nan, np.float32)
    row_of = np.repeat(np.arange(len(row.counts)), row.counts)
    following = np.append(row.tokens[1:], -1)
    is_label = row.ids == following[row_of]
    logprobs[row_of[is_label]] = row.logprobs[is_label]
    return logprobs


def token_sizes(tokenizer: LoadedTokenizer) -> npt.NDArray[np.uint32]:
    """Bytes of text per token id, from the vocabulary alone; 0 for special tokens."""
    fast = tokenizer.fast
    sizes = np.zeros(tokenizer.record.vocabulary_size, np.uint32)
    spelled = {i: token for token, i in fast.get_vocab().items()}
    added = {i: token.content for i, token in fast.added_tokens_decoder.items()}
    special = {i for i, token in fast.added_tokens_decoder.items() if token.special} | set(fast.all_special_ids)
    plain = sorted(spelled.keys() - added.keys() - special)
    lengths = [len(spelled[i]) for i in plain] if _is_byte_level(tokenizer) else _decoded(tokenizer, plain, spelled)
    sizes[plain] = np.minimum(lengths, MAX_TOKEN_BYTES)
    for i, text in added.items():
        sizes[i] = 0 if i in special else min(len(text.encode()), MAX_TOKEN_BYTES)
    return sizes


def _is_byte_level(tokenizer: LoadedTokenizer) -> bool:
    """Whether each character of a token is one byte of text."""
    decoder = json.loads(tokenizer.fast.backend_tokenizer.to_str())["decoder"] or {}
    steps = decoder.get("decoders", [decoder])
    return any(step.get("type") == "ByteLevel" for step in steps)


def _decoded(tokenizer: LoadedTokenizer, ids: list[int], spelled: dict[int, str]) -> list[int]:
    """Lengths of decoded ids, each decoded after another id to keep its leading space."""
    if not ids:
        return []
    decode = tokenizer.fast.backend_tokenizer.decode_batch
    before = len(decode([[ids[0]]], skip_special_tokens=False)[0].encode())
    texts = decode([[ids[0], i] for i in ids], skip_special_tokens=False)
    return [
        1 if BYTE_TOKEN.match(spelled[i]) else max(0, len(text.encode()) - before)
        for i, text in zip(ids, texts, strict=True)
    ]
