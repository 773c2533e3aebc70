"""The report of `kdpipe export`, also printed by `--json`."""

from kdpipe.schemas.choices import DtypeName
from kdpipe.schemas.records import Record


class ExportReport(Record):
    """`merged`: an adapter was merged into its base; `difference`: between logits in a new process and those before
    saving, as a share of the largest."""

    folder: str
    dtype: DtypeName
    parameters: int
    bytes: int
    merged: bool
    difference: float
    notes: tuple[str, ...] = ()
