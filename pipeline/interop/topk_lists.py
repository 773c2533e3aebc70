"""Plain top-k: tokens, ids and log-probabilities in columns of any name.

In: Parquet or JSON lines; a row has `tokens` and, for each of them, a list of `ids` and one of `logprobs`; optionally
`loss_mask`, `log_tail` (both per token) and `document_starts`. --columns sets other names. Out: `SourceRow`s. List t
predicts token t + 1, or token t with --align own. `kdpipe cache export --to parquet` writes this format.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, final

import numpy as np

from kdpipe.pipeline.documents.columns import BadRow
from kdpipe.pipeline.documents.row_files import RowFile
from kdpipe.pipeline.interop import FormatInfo, FormatOption
from kdpipe.pipeline.interop.axolotl import ALIGNMENTS, shifted
from kdpipe.pipeline.interop.fields import (
    Bools,
    Floats,
    booleans,
    integers,
    lists_of_integers,
    lists_of_numbers,
    numbers,
    same_counts,
)
from kdpipe.pipeline.interop.source_files import choose_columns, has_column
from kdpipe.pipeline.interop.validated_row import SourceRow
from kdpipe.schemas.choices import Align
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.interop import ImportSettings

# role -> default column names, the first match is used
NEEDED = {
    "tokens": ("tokens", "input_ids"),
    "ids": ("ids", "topk_ids", "top_ids", "token_ids", "topk_token_ids"),
    "logprobs": ("logprobs", "topk_logprobs", "top_logprobs", "top_values"),
}
OPTIONAL = {"loss_mask": ("loss_mask",), "log_tail": ("log_tail",), "document_starts": ("document_starts",)}


@final
class PlainTopK:
    """Plain top-k columns."""

    options: ClassVar[tuple[FormatOption, ...]] = ("align", "columns")

    def __init__(self, settings: ImportSettings, files: list[RowFile]) -> None:
        self._names = _find_names(settings.columns, files)
        if settings.tail is not None and "log_tail" in self._names:
            raise ConfigError(
                f"--tail {settings.tail} contradicts the tails in the column {self._names['log_tail']}",
                hint="omit --tail, or remove the column",
            )
        choose_columns(files, [self._names[role] for role in NEEDED], [*self._names.values()])
        self._align: Align = settings.align or "next"
        self.info = FormatInfo(
            tail=settings.tail or "unknown",
            tail_given="log_tail" in self._names,
            has_loss_mask="loss_mask" in self._names,
            alignment=ALIGNMENTS[self._align],
        )

    def read(self, columns: Mapping[str, Any]) -> SourceRow:
        names = self._names
        tokens = integers(columns, names["tokens"])
        ids, values = lists_of_integers(columns, names["ids"]), lists_of_numbers(columns, names["logprobs"])
        same_counts(ids, values, (names["ids"], names["logprobs"]))
        n = len(tokens)
        row_ids, row_values = (shifted(lists, n, self._align, n, values) for lists in (ids, values))
        return SourceRow(
            tokens=tokens,
            trained=self._trained(columns, n),
            ids=row_ids,
            values=row_values,
            log_tail=self._tails(columns, n) if "log_tail" in names else None,
            starts=integers(columns, names["document_starts"]) if "document_starts" in names else None,
        )

    def _trained(self, columns: Mapping[str, Any], n: int) -> Bools:
        if "loss_mask" not in self._names:
            return np.ones(n, bool)
        mask: Bools = self._aligned(booleans(columns, self._names["loss_mask"]), n, False, self._names["loss_mask"])
        return mask

    def _tails(self, columns: Mapping[str, Any], n: int) -> Floats:
        tails: Floats = self._aligned(numbers(columns, self._names["log_tail"]), n, np.nan, self._names["log_tail"])
        return tails

    def _aligned(self, values: Any, n: int, end: Any, name: str) -> Any:
        """One value per row, from n or n - 1 values."""
        if len(values) == n - 1:
            return np.append(values, values.dtype.type(end))
        if len(values) != n:
            raise BadRow(f"{name} has {len(values):,} values for {n:,} tokens")
        return np.append(values[1:], values.dtype.type(end)) if self._align == "own" else values


def _find_names(given: Mapping[str, str], files: list[RowFile]) -> dict[str, str]:
    """The column of each role: the one given with --columns, or its first default name in the files."""
    unknown = sorted(set(given) - {*NEEDED, *OPTIONAL})
    if unknown:
        raise ConfigError(f"unknown role in --columns: {unknown[0]}", hint=f"roles: {', '.join([*NEEDED, *OPTIONAL])}")
    names = {}
    for role, defaults in {**NEEDED, **OPTIONAL}.items():
        matches = [given[role]] if role in given else [name for name in defaults if has_column(files, name)]
        if matches:
            names[role] = matches[0]
        elif role in NEEDED:
            raise ConfigError(
                f"no column for {role}: tried {', '.join(defaults)}", hint=f"name it with --columns {role}=NAME"
            )
    return names
