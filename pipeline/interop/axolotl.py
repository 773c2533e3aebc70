"""Axolotl's columns for offline distillation: `input_ids`, `target_token_ids` and `target_logprobs`.

In: Parquet or JSON lines with these columns, optionally `labels` and `attention_mask`. Out: `SourceRow`s. The files do
not state their alignment: list t predicts token t + 1 (as documented; the last list is empty or padding), or token t
(as in the output of vLLM; the first list is empty or padding). The first row with as many lists as tokens decides, or
--align. The first form of this format has one column, `logprobs`, with lists of {"token": "token_id:N", "logprob": x}
for the last tokens; list t predicts token t.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, final

import numpy as np

from kdpipe.cache.format.number_lists import NumberLists
from kdpipe.pipeline.documents.columns import BadRow
from kdpipe.pipeline.documents.row_files import RowFile
from kdpipe.pipeline.interop import FormatInfo, FormatOption
from kdpipe.pipeline.interop.fields import (
    Bools,
    Longs,
    booleans,
    entries,
    integers,
    lists_of_integers,
    lists_of_numbers,
    same_counts,
)
from kdpipe.pipeline.interop.source_files import choose_columns, has_column
from kdpipe.pipeline.interop.validated_row import MIN_LOGPROB, SourceRow, aligned
from kdpipe.schemas.choices import Align
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.interop import ImportSettings

IDS, VALUES = "target_token_ids", "target_logprobs"
ENTRIES = "logprobs"
TEXT_COLUMNS = ("messages", "messages_combined", "conversations", "text")
IGNORED_LABEL = -100
ALIGNMENTS: dict[Align, str] = {"next": "list t predicts token t + 1", "own": "list t predicts token t"}


@final
class Axolotl:
    """Axolotl's columns."""

    options: ClassVar[tuple[FormatOption, ...]] = ("align", "columns")

    def __init__(self, settings: ImportSettings, files: list[RowFile]) -> None:
        self._entries = _entries_column(settings, files)
        targets = (IDS, VALUES) if self._entries is None else (self._entries,)
        _refuse_texts(files)
        choose_columns(files, ("input_ids", *targets), ("labels", "attention_mask"))
        self._has_labels = has_column(files, "labels")
        self._has_mask = has_column(files, "attention_mask")
        self._align: Align = settings.align or (_find_alignment(files) if self._entries is None else "own")
        self.info = FormatInfo(
            tail=settings.tail or "unknown", has_loss_mask=self._has_labels, alignment=ALIGNMENTS[self._align]
        )

    def read(self, columns: Mapping[str, Any]) -> SourceRow:
        tokens = integers(columns, "input_ids")
        n = _n_unpadded(columns, len(tokens)) if self._has_mask else len(tokens)
        if self._entries is None:
            ids, values = lists_of_integers(columns, IDS), lists_of_numbers(columns, VALUES)
            same_counts(ids, values, (IDS, VALUES))
        else:
            last = entries(columns, self._entries)
            ids, values = (_padded_in_front(lists, n, len(tokens) - n, self._align) for lists in last)
        row_ids, row_values = (shifted(lists, len(tokens), self._align, n, values) for lists in (ids, values))
        trained = _labeled(columns, tokens)[:n] if self._has_labels else np.ones(n, bool)
        return SourceRow(tokens=tokens[:n], trained=trained, ids=row_ids, values=row_values)


def _entries_column(settings: ImportSettings, files: list[RowFile]) -> str | None:
    """The column of the first form: as given, or `logprobs` without the newer columns; None for the newer form."""
    if odd := sorted(set(settings.columns) - {"logprobs"}):
        raise ConfigError(f"unknown role in --columns: {odd[0]}", hint="the only role of --from axolotl is logprobs")
    if settings.columns:
        return settings.columns["logprobs"]
    return ENTRIES if has_column(files, ENTRIES) and not has_column(files, IDS) else None


def _refuse_texts(files: list[RowFile]) -> None:
    """Refuse texts without tokens: a text does not determine the token that a list belongs to."""
    if not has_column(files, "input_ids") and any(has_column(files, name) for name in TEXT_COLUMNS):
        raise ConfigError(
            f"{files[0].name} has text but no input_ids, and does not state how the text was tokenized",
            hint="add a column input_ids with the tokens that the teacher predicted",
        )


def _padded_in_front(lists: NumberLists, n_tokens: int, n_padding: int, align: Align) -> NumberLists:
    """Lists of the last tokens as lists of all tokens, empty for earlier tokens and for padding."""
    missing = n_tokens - len(lists.counts)
    if missing < 0:
        raise BadRow(f"targets for {len(lists.counts):,} tokens, but the row has {n_tokens:,}")
    # The last list, which predicts a token that does not exist, may be missing.
    at_end = 1 if align == "next" and missing else 0
    return NumberLists(lists.values, np.pad(lists.counts, (missing - at_end, at_end + n_padding)))


def shifted(lists: NumberLists, n_tokens: int, align: Align, n: int, values: NumberLists) -> NumberLists:
    """The lists of the first n tokens, shifted so that list t predicts token t + 1."""
    if align == "own" and len(lists.counts) == n_tokens and not _is_empty(values, 0):
        raise BadRow("list 0 is not empty, but no token precedes token 0: list t cannot predict token t")
    rows = aligned(lists, n_tokens, own=align == "own")
    return NumberLists(rows.values[: int(rows.counts[:n].sum())], rows.counts[:n])


def _n_unpadded(columns: Mapping[str, Any], n_tokens: int) -> int:
    """The number of tokens before the padding."""
    mask = booleans(columns, "attention_mask")
    n = int(mask.sum())
    if len(mask) != n_tokens or not mask[:n].all():
        raise BadRow(f"attention_mask must be 1 for the tokens and 0 for padding after them ({n_tokens:,} values)")
    return n


def _labeled(columns: Mapping[str, Any], tokens: Longs) -> Bools:
    """Rows to train on: a label repeats its token, or is -100."""
    labels = integers(columns, "labels")
    if len(labels) != len(tokens):
        raise BadRow(f"{len(labels):,} labels for {len(tokens):,} tokens")
    trained = labels != IGNORED_LABEL
    wrong = trained & (labels != tokens)
    if wrong.any():
        place = int(wrong.argmax())
        raise BadRow(
            f"label {place} is {labels[place]} and token {place} is {tokens[place]}, expected equal ids or -100"
        )
    return np.append(trained[1:], False)


def _find_alignment(files: list[RowFile]) -> Align:
    """The alignment, from the first row with as many lists as tokens."""
    for file in files:
        for row in file.rows():
            if row.columns is None:
                break
            try:
                n_tokens = len(integers(row.columns, "input_ids"))
                values = lists_of_numbers(row.columns, VALUES)
            except BadRow as problem:
                raise ConfigError(f"{file.name}, row {row.number:,}: {problem}") from None
            if len(values.counts) == n_tokens > 1:
                return _alignment_of(values, f"{file.name}, row {row.number:,}")
    return "next"


def _alignment_of(values: NumberLists, place: str) -> Align:
    first, last = _is_empty(values, 0), _is_empty(values, len(values.counts) - 1)
    if first == last:
        which = (
            "both its first and its last list are empty" if first else "neither its first nor its last list is empty"
        )
        raise ConfigError(
            f"{place}: {which}; cannot detect whether list t predicts token t or t + 1",
            hint="use --align next (list t predicts token t + 1) or --align own (token t, as in vLLM's output)",
        )
    return "own" if first else "next"


def _is_empty(values: NumberLists, number: int) -> bool:
    """Whether a list has no entries, or only padding."""
    start = int(values.counts[:number].sum())
    return not (values.values[start : start + int(values.counts[number])] >= MIN_LOGPROB).any()
