"""What a copy of a cache answers with.

In: counts. Out: the record that `kdpipe cache copy --json` prints. Before it: `cache/transfer`. After it:
`cli/cache/copy.py`.
"""

from kdpipe.schemas.records import Record


class CopyReport(Record):
    """Of `parts` in all `copied` were moved, those in `repaired` because they were damaged; `cache_id` is None where
    the cache is unfinished."""

    source: str
    target: str
    cache_id: str | None
    parts: int
    copied: int
    repaired: tuple[int, ...]
    bytes: int
    seconds: float
