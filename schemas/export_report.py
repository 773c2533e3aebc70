"""What `kdpipe export` has made, for a person and for a program.

In: `pipeline/export.py`. Out: the document of `--json`.
"""

from kdpipe.schemas.choices import DtypeName
from kdpipe.schemas.records import Record


class ExportReport(Record):
    """A folder that loads, in one number type; `merged` where an adapter became part of its base.

    `difference` is between its logits in a fresh process and those before it was saved, as a share of the largest.
    """

    folder: str
    dtype: DtypeName
    parameters: int
    bytes: int
    merged: bool
    difference: float
    notes: tuple[str, ...] = ()
