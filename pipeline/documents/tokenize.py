"""Rendered documents as tokens, with their loss mask and bytes, cut to the length of a sequence.

In: rendered documents. Out: the `DocumentTokens` of each, and `Segment`s of at most a sequence's length.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding

from kdpipe.cache.format.invariants import MAX_TOKEN_BYTES
from kdpipe.pipeline.documents.assistant_turns import Span
from kdpipe.pipeline.documents.render import Rendered
from kdpipe.pipeline.documents.segments import Segment
from kdpipe.pipeline.tokenizers.tokenizer import LoadedTokenizer
from kdpipe.schemas.errors import Untrainable

Longs = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
DIGEST_BYTES = 16
# Untrainable documents are counted, and this many are named.
SHOWN = 3
WHITE_SPACE = np.array([point for point in range(0x3001) if chr(point).isspace()], np.uint32)


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentTokens:
    """The tokens of a document: whether each is trained on, and the character of `text` at which it ends."""

    ids: npt.NDArray[np.int32]
    trained: Bools
    ends: Longs
    text: str

    def byte_counts(self) -> npt.NDArray[np.uint32]:
        """The number of bytes that each token covers; they add up to the bytes of the text."""
        ends = byte_places(self.text)[self.ends]
        return np.diff(ends, prepend=0).astype(np.uint32)


def tokenize(rendered: Sequence[Rendered], places: Sequence[str], tokenizer: LoadedTokenizer) -> list[DocumentTokens]:
    """Tokenize documents; `places` name them in errors."""
    encodings: list[Encoding] = []
    for templated, group in groupby(rendered, key=lambda document: document.templated):
        encodings += tokenizer.encode([document.text for document in group], not templated)
    return [_tokens(*document, tokenizer) for document in zip(rendered, encodings, places, strict=True)]


def _tokens(rendered: Rendered, encoding: Encoding, place: str, tokenizer: LoadedTokenizer) -> DocumentTokens:
    ids = np.array(encoding.ids, np.int32)
    spread = np.array(encoding.offsets, np.int64).reshape(-1, 2)
    text = rendered.text
    if (
        rendered.stop_wanted
        and not rendered.templated
        and tokenizer.stop is not None
        and (len(ids) == 0 or ids[-1] != tokenizer.stop)
    ):
        ids = np.append(ids, np.int32(tokenizer.stop))
        spread = np.vstack([spread, [[0, 0]]])
    ends = np.maximum.accumulate(spread[:, 1])
    written = spread[:, 1] > spread[:, 0]
    if written.any():
        # White space that the tokenizer drops at the end of a text belongs to the last token with text.
        ends[np.flatnonzero(written)[-1] :] = len(text)
    if rendered.spans is None:
        trained = np.ones(len(ids), bool)
    else:
        trained = _within(text, spread, written, rendered.spans)
        if rendered.templated:
            _stop_turns(trained, ids, ends, rendered, place, tokenizer)
        _check_partial(trained, written, place)
    tokens = DocumentTokens(ids=ids, trained=trained, ends=ends, text=text)
    _check_bytes(tokens, place)
    return tokens


def _check_bytes(tokens: DocumentTokens, place: str) -> None:
    largest = int(tokens.byte_counts().max(initial=0))
    if largest > MAX_TOKEN_BYTES:
        raise Untrainable(
            f"{place}: one token covers {largest:,} bytes of text, at most {MAX_TOKEN_BYTES:,} can be stored",
            hint="the tokenizer skips most of this document: remove it, or lower data.max_document_bytes",
        )


def byte_places(text: str) -> Longs:
    """The byte offset of each character in UTF-8, and the end."""
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    sizes = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    return np.concatenate([[0], np.cumsum(sizes)])


def _within(text: str, spread: Longs, written: Bools, spans: Sequence[Span]) -> Bools:
    """Tokens that begin in a span, ignoring leading white space; a stop token belongs to a span at the end."""
    if not spans:
        return np.zeros(len(written), bool)
    starts = np.array([start for start, _ in spans], np.int64)
    stops = np.array([end for _, end in spans], np.int64)
    begins = np.minimum(_next_visible(text)[spread[:, 0]], np.maximum(spread[:, 1] - 1, spread[:, 0]))
    which = np.searchsorted(starts, begins, "right") - 1
    trained = (which >= 0) & (begins < stops[which]) & written
    last = np.flatnonzero(written)[-1] if written.any() else -1
    if stops[-1] == len(text):
        trained[last + 1 :] = True
    return trained


def _next_visible(text: str) -> Longs:
    """For each character, the index of the next one that is not white space."""
    n = len(text)
    visible = ~np.isin(np.frombuffer(text.encode("utf-32-le"), np.uint32), WHITE_SPACE)
    places = np.where(visible, np.arange(n), n)
    return np.append(np.minimum.accumulate(places[::-1])[::-1], n)


def _stop_turns(
    trained: Bools, ids: npt.NDArray[np.int32], ends: Longs, rendered: Rendered, place: str, tokenizer: LoadedTokenizer
) -> None:
    """End each trained turn at its stop token, without the template's white space after it."""
    edges = np.flatnonzero(np.diff(trained.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
    for number, (first, end) in enumerate(edges.tolist()):
        last = end - 1
        while last > first and not rendered.text[ends[last - 1] : ends[last]].strip():
            last -= 1
        if int(ids[last]) in tokenizer.turn_ends:
            trained[last + 1 : end] = False
        elif rendered.stop_wanted:
            raise Untrainable(
                f"{place}: assistant turn {number + 1} does not end with a stop token,"
                f" so students would never stop: {rendered.text[: ends[end - 1]][-40:]!r}",
                hint="use a template that ends turns (data.chat_template), or --set data.append_stop=false",
            )


def _check_partial(trained: Bools, written: Bools, place: str) -> None:
    if not trained.any():
        share, why = "no", "no response was found"
    elif trained[written].all():
        share, why = "every", "the document contains only responses"
    else:
        return
    raise Untrainable(
        f"{place}: data.train_on=assistant selects {share} token: {why}",
        hint="check the document and the chat template, or set data.train_on=all",
    )


def marked(tokens: DocumentTokens, tokenizer: LoadedTokenizer) -> list[tuple[str, bool]]:
    """A document as runs of trained and untrained text; special tokens are spelled out."""
    begins = np.concatenate([[0], tokens.ends[:-1]]).tolist()
    special = set(tokenizer.fast.all_special_ids)
    runs: list[tuple[str, bool]] = []
    for i, begin, end, trained in zip(
        tokens.ids.tolist(), begins, tokens.ends.tolist(), tokens.trained.tolist(), strict=True
    ):
        text = tokenizer.token_text(i) if begin == end and i in special else tokens.text[begin:end]
        if runs and runs[-1][1] == trained:
            runs[-1] = (runs[-1][0] + text, trained)
        else:
            runs.append((text, trained))
    return runs


@dataclass(slots=True)
class DocumentCounts:
    """Counts of the documents tokenized so far."""

    documents: int = 0
    segments: int = 0
    tokens: int = 0
    positions: int = 0
    split_documents: int = 0
    truncated_documents: int = 0
    truncated_tokens: int = 0
    masked_segments: int = 0
    masked_tokens: int = 0
    empty_documents: int = 0
    known_documents: int = 0
    known_segments: int = 0
    untrainable_documents: int = 0
    untrainable: list[str] = field(default_factory=list)

    def skip(self, why: str) -> None:
        """Count an untrainable document, and keep the reasons of the first ones."""
        self.untrainable_documents += 1
        if len(self.untrainable) < SHOWN:
            self.untrainable.append(why)


def cut(tokens: DocumentTokens, length: int, how: str, counts: DocumentCounts, **known: Any) -> Iterator[Segment]:
    """The segments of a document; fully masked segments of a longer one are skipped and counted."""
    n, shown = len(tokens.ids), len(tokens.ids)
    counts.documents += 1
    if n == 0:
        counts.empty_documents += 1
    if n > length and how == "truncate":
        counts.truncated_documents += 1
        counts.truncated_tokens += n - length
        shown = length
    counts.split_documents += shown > length
    sizes = tokens.byte_counts()
    for first in range(0, shown, length):
        end = min(first + length, shown)
        mask = np.append(tokens.trained[first + 1 : end], False)
        if n > length and not mask.any():
            counts.masked_segments += 1
            counts.masked_tokens += end - first
            continue
        counts.segments += 1
        counts.tokens += end - first
        counts.positions += int(mask.sum())
        yield _segment(tokens, slice(first, end), mask, sizes, known)


def _segment(
    tokens: DocumentTokens, rows: slice, mask: Bools, sizes: npt.NDArray[np.uint32], known: dict[str, Any]
) -> Segment:
    ids = tokens.ids[rows]
    begin = int(tokens.ends[rows.start - 1]) if rows.start else 0
    return Segment(
        offset=rows.start,
        tokens=ids,
        loss_mask=mask,
        token_bytes=sizes[rows],
        digest=hashlib.sha256(ids.astype("<u4").tobytes()).digest()[:DIGEST_BYTES],
        text=tokens.text[begin : int(tokens.ends[rows.stop - 1])],
        **known,
    )
