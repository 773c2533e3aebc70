"""Plain top-k: tokens, ids and log-probabilities in columns of any name.

In: Parquet or JSON lines; a row has `tokens`, and for each of them a list of `ids` and one of `logprobs`, perhaps
`loss_mask`, `log_tail` (one for each token) and `document_starts`; --columns says other names. Out: `SourceRow` rows.
List t is about token t + 1 unless --align own is said. What `kdpipe cache export --to parquet` writes is of this form.
"""

from collections.abc import Mapping
from typing import Any, final

import numpy as np

from kdpipe.pipeline.documents.columns import BadRow
from kdpipe.pipeline.documents.row_files import RowFile
from kdpipe.pipeline.interop import FormatFacts
from kdpipe.pipeline.interop.axolotl import ALIGNMENTS, shifted
from kdpipe.pipeline.interop.fields import (
    Bools,
    Floats,
    lists_of_numbers,
    lists_of_whole_numbers,
    numbers,
    same_counts,
    truths,
    whole_numbers,
)
from kdpipe.pipeline.interop.options import refuse_options
from kdpipe.pipeline.interop.source_files import choose_columns, has_column
from kdpipe.pipeline.interop.validated_row import SourceRow
from kdpipe.schemas.choices import Align
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.interop import ImportSettings

# role -> the names that are looked for, in this order
NEEDED = {
    "tokens": ("tokens", "input_ids"),
    "ids": ("ids", "topk_ids", "top_ids", "token_ids", "topk_token_ids"),
    "logprobs": ("logprobs", "topk_logprobs", "top_logprobs", "top_values"),
}
USEFUL = {"loss_mask": ("loss_mask",), "log_tail": ("log_tail",), "document_starts": ("document_starts",)}


@final
class PlainTopK:
    """Plain top-k, in some files."""

    def __init__(self, settings: ImportSettings, files: list[RowFile]) -> None:
        refuse_options(settings, ("align", "columns"))
        self._names = _find_names(settings.columns, files)
        if settings.tail is not None and "log_tail" in self._names:
            raise ConfigError(
                f"--tail {settings.tail}: the source has its own tails, in {self._names['log_tail']}",
                hint="leave --tail out, or the column",
            )
        choose_columns(files, [self._names[role] for role in NEEDED], [*self._names.values()])
        self._align: Align = settings.align or "next"
        self.facts = FormatFacts(
            tail=settings.tail or "unknown",
            tail_given="log_tail" in self._names,
            has_loss_mask="loss_mask" in self._names,
            alignment=ALIGNMENTS[self._align],
        )

    def read(self, columns: Mapping[str, Any]) -> SourceRow:
        """A row of the source."""
        names = self._names
        tokens = whole_numbers(columns, names["tokens"])
        ids, values = lists_of_whole_numbers(columns, names["ids"]), lists_of_numbers(columns, names["logprobs"])
        same_counts(ids, values, (names["ids"], names["logprobs"]))
        n = len(tokens)
        row_ids, row_values = (shifted(each, n, self._align, n, values) for each in (ids, values))
        return SourceRow(
            tokens=tokens,
            trained=self._trained(columns, n),
            ids=row_ids,
            values=row_values,
            log_tail=self._tails(columns, n) if "log_tail" in names else None,
            starts=whole_numbers(columns, names["document_starts"]) if "document_starts" in names else None,
        )

    def _trained(self, columns: Mapping[str, Any], n: int) -> Bools:
        """Which rows are learnt, as their lists are aligned."""
        if "loss_mask" not in self._names:
            return np.ones(n, bool)
        found: Bools = self._moved(truths(columns, self._names["loss_mask"]), n, False, "truth values")
        return found

    def _tails(self, columns: Mapping[str, Any], n: int) -> Floats:
        found: Floats = self._moved(numbers(columns, self._names["log_tail"]), n, np.nan, "tails")
        return found

    def _moved(self, values: Any, n: int, end: Any, what: str) -> Any:
        """One value a row, from as many as tokens or one less."""
        if len(values) == n - 1:
            return np.append(values, values.dtype.type(end))
        if len(values) != n:
            raise BadRow(f"it has {len(values):,} {what} for {n:,} tokens")
        return np.append(values[1:], values.dtype.type(end)) if self._align == "own" else values


def _find_names(asked: Mapping[str, str], files: list[RowFile]) -> dict[str, str]:
    """The column of each role: as it was said, or the first of its usual names that is there."""
    unknown = sorted(set(asked) - {*NEEDED, *USEFUL})
    if unknown:
        raise ConfigError(
            f"--columns names {unknown[0]}, which is no role", hint=f"roles are {', '.join([*NEEDED, *USEFUL])}"
        )
    found = {}
    for role, usual in {**NEEDED, **USEFUL}.items():
        names = [asked[role]] if role in asked else [name for name in usual if has_column(files, name)]
        if names:
            found[role] = names[0]
        elif role in NEEDED:
            raise ConfigError(
                f"no column holds the {role}: looked for {', '.join(usual)}",
                hint=f"say which does with --columns {role}=NAME",
            )
    return found
