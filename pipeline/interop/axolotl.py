"""Axolotl's columns for offline distillation: `target_token_ids` and `target_logprobs` beside `input_ids`.

In: Parquet or JSON lines with these columns, perhaps `labels` and `attention_mask`. Out: `SourceRow` rows. Rows lie in
one of two ways, and nothing in the files says which: list t is about token t + 1 (its documentation; the last list is
empty or padding), or about token t (as vLLM answers: the first is empty or padding). The first row of a source with as
many lists as tokens tells, or --align does. The first form of these files has one column, `logprobs`: for each of the
last tokens, itself meant, a list of {"token": "token_id:N", "logprob": x}.
"""

from collections.abc import Mapping
from typing import Any, final

import numpy as np

from kdpipe.cache.format.number_lists import NumberLists
from kdpipe.pipeline.documents.columns import BadRow
from kdpipe.pipeline.documents.row_files import RowFile
from kdpipe.pipeline.interop import FormatFacts
from kdpipe.pipeline.interop.fields import (
    Bools,
    Longs,
    entries,
    lists_of_numbers,
    lists_of_whole_numbers,
    same_counts,
    truths,
    whole_numbers,
)
from kdpipe.pipeline.interop.options import refuse_options
from kdpipe.pipeline.interop.source_files import choose_columns, has_column
from kdpipe.pipeline.interop.validated_row import NOTHING_NATS, SourceRow, aligned
from kdpipe.schemas.choices import Align
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.interop import ImportSettings

IDS, VALUES = "target_token_ids", "target_logprobs"
ENTRIES = "logprobs"
TEXT_COLUMNS = ("messages", "messages_combined", "conversations", "text")
IGNORED_LABEL = -100
ALIGNMENTS: dict[Align, str] = {"next": "list t is about token t + 1", "own": "list t is about token t"}


@final
class Axolotl:
    """Axolotl's columns, on some files."""

    def __init__(self, settings: ImportSettings, files: list[RowFile]) -> None:
        refuse_options(settings, ("align", "columns"))
        self._entries = _entries_column(settings, files)
        targets = (IDS, VALUES) if self._entries is None else (self._entries,)
        _refuse_texts(files)
        choose_columns(files, ("input_ids", *targets), ("labels", "attention_mask"))
        self._has_labels = has_column(files, "labels")
        self._has_mask = has_column(files, "attention_mask")
        self._align: Align = settings.align or (_find_alignment(files) if self._entries is None else "own")
        self.facts = FormatFacts(
            tail=settings.tail or "unknown", has_loss_mask=self._has_labels, alignment=ALIGNMENTS[self._align]
        )

    def read(self, columns: Mapping[str, Any]) -> SourceRow:
        """A row of the source; padding behind its last token is cut off."""
        tokens = whole_numbers(columns, "input_ids")
        n = _attended(columns, len(tokens)) if self._has_mask else len(tokens)
        if self._entries is None:
            ids, values = lists_of_whole_numbers(columns, IDS), lists_of_numbers(columns, VALUES)
            same_counts(ids, values, (IDS, VALUES))
        else:
            found = entries(columns, self._entries)
            ids, values = (_of_the_last(each, n, len(tokens) - n, self._align) for each in found)
        row_ids, row_values = (shifted(each, len(tokens), self._align, n, values) for each in (ids, values))
        trained = _labeled(columns, tokens)[:n] if self._has_labels else np.ones(n, bool)
        return SourceRow(tokens=tokens[:n], trained=trained, ids=row_ids, values=row_values)


def _entries_column(settings: ImportSettings, files: list[RowFile]) -> str | None:
    """The one column of the first form, where it is that: as it was said, or `logprobs` without the newer columns."""
    if odd := sorted(set(settings.columns) - {"logprobs"}):
        raise ConfigError(f"--columns names {odd[0]}, which is no role here", hint="--from axolotl has one: logprobs")
    if settings.columns:
        return settings.columns["logprobs"]
    return ENTRIES if has_column(files, ENTRIES) and not has_column(files, IDS) else None


def _refuse_texts(files: list[RowFile]) -> None:
    """Refuse rows whose tokens are not there: which token a list is about cannot be told from a text."""
    if not has_column(files, "input_ids") and any(has_column(files, name) for name in TEXT_COLUMNS):
        raise ConfigError(
            f"{files[0].name} has texts and no input_ids, and nothing says how they were made into tokens",
            hint="add the tokens that the teacher was asked about as a column input_ids",
        )


def _of_the_last(lists: NumberLists, n_tokens: int, n_padding: int, align: Align) -> NumberLists:
    """Lists of the last tokens as lists of all: those in front have none, nor has the padding behind."""
    missing = n_tokens - len(lists.counts)
    if missing < 0:
        raise BadRow(f"it has targets for {len(lists.counts):,} tokens of {n_tokens:,}")
    # The last list that is about the next token may have been left out.
    behind = 1 if align == "next" and missing else 0
    return NumberLists(lists.values, np.pad(lists.counts, (missing - behind, behind + n_padding)))


def shifted(lists: NumberLists, n_tokens: int, align: Align, n: int, values: NumberLists) -> NumberLists:
    """Lists about token t + 1 in row t, of the first n tokens."""
    if align == "own" and len(lists.counts) == n_tokens and not _is_empty(values, 0):
        raise BadRow("its first token has targets, and nothing stands before it: list t cannot be about token t")
    found = aligned(lists, n_tokens, own=align == "own")
    return NumberLists(found.values[: int(found.counts[:n].sum())], found.counts[:n])


def _attended(columns: Mapping[str, Any], n_tokens: int) -> int:
    """How many tokens stand before the padding."""
    mask = truths(columns, "attention_mask")
    n = int(mask.sum())
    if len(mask) != n_tokens or not mask[:n].all():
        raise BadRow("attention_mask must be 1 for each token and then 0 for padding")
    return n


def _labeled(columns: Mapping[str, Any], tokens: Longs) -> Bools:
    """Which rows are learnt: labels repeat the token that is to be learnt, and are -100 elsewhere."""
    labels = whole_numbers(columns, "labels")
    if len(labels) != len(tokens):
        raise BadRow(f"it has {len(labels):,} labels for {len(tokens):,} tokens")
    trained = labels != IGNORED_LABEL
    wrong = trained & (labels != tokens)
    if wrong.any():
        place = int(wrong.argmax())
        raise BadRow(
            f"label {place} is {labels[place]} and token {place} is {tokens[place]}: they must be equal or -100"
        )
    return np.append(trained[1:], False)


def _find_alignment(files: list[RowFile]) -> Align:
    """How lists lie, by the first row that has as many of them as tokens."""
    for file in files:
        for row in file.rows():
            if row.columns is None:
                break
            try:
                n_tokens = len(whole_numbers(row.columns, "input_ids"))
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
            f"{place}: {which}, so whether list t is about token t or t + 1 cannot be seen",
            hint="say --align next (list t is about token t + 1) or --align own (about token t, as vLLM answers)",
        )
    return "own" if first else "next"


def _is_empty(values: NumberLists, number: int) -> bool:
    """Whether a list has nothing, or nothing but padding."""
    start = int(values.counts[:number].sum())
    return not (values.values[start : start + int(values.counts[number])] >= NOTHING_NATS).any()
