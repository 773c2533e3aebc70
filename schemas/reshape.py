"""What the commands that make caches from caches answer with: `cache merge`, `subset` and `requantise`.

In: what `cache/reshape` and `pipeline/requantise.py` did. Out: the JSON document of `--json`, key by key.
Before it: `report.py`. After it: their commands.
"""

from typing import Literal

from kdpipe.schemas.records import Record
from kdpipe.schemas.report import PartsMade


class ReshapeReport(Record):
    """The whole answer; `adopted` and `rewritten` count the parts of the plan, `left_out` the documents of the sources
    that the new cache does not have."""

    action: Literal["merge", "subset", "requantise"]
    cache: str
    cache_id: str
    sources: tuple[str, ...]
    parts: PartsMade
    adopted: int
    rewritten: int
    documents: int
    left_out: int
    positions: int
    bytes: int
    seconds: float
