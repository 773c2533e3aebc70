"""NeMo-Aligner's format: the logits of the k most probable ids, and the log-sum-exp of all logits.

In: JSON lines (or Parquet) with tokens, labels, loss_mask, topk_logits, topk_token_ids and log_sum_exp_logits, as
written by its compute_topk_logits.py. Out: `SourceRow`s. Labels are the tokens shifted by one, so row t predicts token
t + 1, and the last label is an additional token. What follows the last trained token is batch padding and is cut off.
log p = logit - log_sum_exp, so the tail is known.
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
    integers,
    lists_of_integers,
    lists_of_numbers,
    numbers,
    same_counts,
)
from kdpipe.pipeline.interop.source_files import choose_columns
from kdpipe.pipeline.interop.validated_row import SourceRow
from kdpipe.schemas.interop import ImportSettings

COLUMNS = ("tokens", "labels", "loss_mask", "topk_logits", "topk_token_ids", "log_sum_exp_logits")


@final
class Nemo:
    """NeMo-Aligner's columns."""

    options: ClassVar[tuple[FormatOption, ...]] = ()

    def __init__(self, settings: ImportSettings, files: list[RowFile]) -> None:
        choose_columns(files, COLUMNS, ())
        self.info = FormatInfo(
            tail=settings.tail or "rest", has_loss_mask=True, alignment="row t predicts label t (token t + 1)"
        )

    def read(self, columns: Mapping[str, Any]) -> SourceRow:
        tokens, labels = integers(columns, "tokens"), integers(columns, "labels")
        trained = booleans(columns, "loss_mask")
        total = numbers(columns, "log_sum_exp_logits")
        ids, logits = lists_of_integers(columns, "topk_token_ids"), lists_of_numbers(columns, "topk_logits")
        same_counts(ids, logits, ("topk_token_ids", "topk_logits"))
        lengths = {len(tokens), len(labels), len(trained), len(total), len(ids.counts)}
        if len(lengths) != 1:
            raise BadRow(
                f"its columns have different lengths ({', '.join(f'{n:,}' for n in sorted(lengths))}),"
                " expected one entry per token"
            )
        if not np.isfinite(total).all():
            raise BadRow(f"log_sum_exp_logits contains {total[~np.isfinite(total)][0]}")
        n = _n_rows(tokens, labels, trained)
        end = int(ids.counts[:n].sum())
        counts = np.append(ids.counts[:n], 0)
        values = logits.values[:end] - np.repeat(total[:n], ids.counts[:n])
        return SourceRow(
            tokens=np.append(tokens[:n], labels[n - 1 : n]),
            trained=np.append(trained[:n], False),
            ids=NumberLists(ids.values[:end], counts),
            values=NumberLists(values, counts),
        )


def _n_rows(tokens: Longs, labels: Longs, trained: Bools) -> int:
    """The number of rows up to the last trained one; their labels must be the tokens shifted by one."""
    if not trained.any():
        raise BadRow("no token to train on: loss_mask is 0 everywhere")
    n = int(np.flatnonzero(trained)[-1]) + 1
    wrong = labels[: n - 1] != tokens[1:n]
    if wrong.any():
        place = int(wrong.argmax())
        raise BadRow(
            f"label {place} is {labels[place]} and token {place + 1} is {tokens[place + 1]}, expected equal ids"
        )
    return n
