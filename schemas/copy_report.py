"""The request and the report of a copy: `PartSelection`, and the record that `kdpipe cache copy --json` prints."""

import re
from typing import Final

from kdpipe.schemas.choices import SplitName
from kdpipe.schemas.records import Record
from kdpipe.schemas.reshape import Bounds

_NOTE: Final = re.compile(
    r"(?:parts (?P<first>[0-9]*):(?P<end>[0-9]*))?(?:(?:^|; )split (?P<split>train|validation))?"
    r"(?:(?:^|; )without (?P<without>[a-z]+(?:, [a-z]+)*))?"
)


class PartSelection(Record):
    """The parts to copy, their split, and content to leave out; by default everything.

    Its text is stored in the history of the copy, and parsed by `of`.
    """

    parts: Bounds | None = None
    split: SplitName | None = None
    without: tuple[str, ...] = ()

    def __str__(self) -> str:
        words = [f"{name} {value}" for name in ("parts", "split") if (value := getattr(self, name))]
        return "; ".join([*words, *([f"without {', '.join(self.without)}"] if self.without else [])])

    @classmethod
    def of(cls, note: str) -> "PartSelection | None":
        """Parse a note of a history; None where it is no selection."""
        match = _NOTE.fullmatch(note)
        if match is None or not note:
            return None
        bounds = None
        if match["first"] is not None:
            bounds = Bounds(first=_number(match["first"]), end=_number(match["end"]))
        without = tuple(match["without"].split(", ")) if match["without"] else ()
        return cls.model_validate({"parts": bounds, "split": match["split"], "without": without})


def _number(text: str) -> int | None:
    return int(text) if text else None


class CopyReport(Record):
    """Of `parts` in all `copied` were moved, those in `repaired` because they were damaged; an unfinished
    cache has no `cache_id`. `redownloaded` counts files that came wrong or were replaced while they were read.

    `selection` and `made_from`, the cache_id of the source, are missing where all of it is copied.
    """

    source: str
    target: str
    cache_id: str | None
    selection: str | None = None
    made_from: str | None = None
    parts: int
    copied: int
    repaired: tuple[int, ...]
    redownloaded: int = 0
    bytes: int
    seconds: float
