"""NeMo-Aligner's lines: the logits of the k most probable ids, and the log of the sum over all.

In: JSON lines (or Parquet) with tokens, labels, loss_mask, topk_logits, topk_token_ids and log_sum_exp_logits, as its
compute_topk_logits.py writes them. Out: `SourceRow` rows. Labels are the tokens one place on, so its row t is about
token t + 1, and the label of the last row is one token more. What stands behind the last token that is learnt is
padding of its batch, and is cut off. log p = logit - log_sum_exp, so the tail is known.
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
    lists_of_numbers,
    lists_of_whole_numbers,
    numbers,
    same_counts,
    truths,
    whole_numbers,
)
from kdpipe.pipeline.interop.options import refuse_options
from kdpipe.pipeline.interop.source_files import choose_columns
from kdpipe.pipeline.interop.validated_row import SourceRow
from kdpipe.schemas.interop import ImportSettings

COLUMNS = ("tokens", "labels", "loss_mask", "topk_logits", "topk_token_ids", "log_sum_exp_logits")


@final
class Nemo:
    """NeMo-Aligner's lines, in some files."""

    def __init__(self, settings: ImportSettings, files: list[RowFile]) -> None:
        refuse_options(settings, ())
        choose_columns(files, COLUMNS, ())
        self.facts = FormatFacts(
            tail=settings.tail or "rest", has_loss_mask=True, alignment="row t is about label t, which is token t + 1"
        )

    def read(self, columns: Mapping[str, Any]) -> SourceRow:
        """A row of the source; padding behind its last token is cut off."""
        tokens, labels = whole_numbers(columns, "tokens"), whole_numbers(columns, "labels")
        trained = truths(columns, "loss_mask")
        total = numbers(columns, "log_sum_exp_logits")
        ids, logits = lists_of_whole_numbers(columns, "topk_token_ids"), lists_of_numbers(columns, "topk_logits")
        same_counts(ids, logits, ("topk_token_ids", "topk_logits"))
        lengths = {len(tokens), len(labels), len(trained), len(total), len(ids.counts)}
        if len(lengths) != 1:
            raise BadRow(
                f"its columns have {', '.join(f'{n:,}' for n in sorted(lengths))} entries: one for each token is due"
            )
        if not np.isfinite(total).all():
            raise BadRow(f"log_sum_exp_logits holds {total[~np.isfinite(total)][0]}")
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
    """The rows up to the last that is learnt; their labels must be the tokens that follow."""
    if not trained.any():
        raise BadRow("nothing of it is learnt: its loss_mask is 0 throughout")
    n = int(np.flatnonzero(trained)[-1]) + 1
    wrong = labels[: n - 1] != tokens[1:n]
    if wrong.any():
        place = int(wrong.argmax())
        raise BadRow(
            f"label {place} is {labels[place]} and token {place + 1} is {tokens[place + 1]}: they must be equal"
        )
    return n
