"""Numbers as text: sizes, durations and shares."""

from kdpipe.schemas.counts import duration as duration
from kdpipe.schemas.counts import size as size


def share(part: float) -> str:
    """A share of 0 to 1 in percent: 91%."""
    return f"{part:.0%}"
