"""Caches from what other tools have stored, and files for other tools from caches.

In: the name of a format. Out: its class, imported when it is asked for. A format says which columns it reads and turns
a row of them into a `SourceRow`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, cast

from kdpipe.pipeline.documents.row_files import RowFile
from kdpipe.pipeline.interop.validated_row import SourceRow
from kdpipe.schemas.choices import ImportFormat, StatedTail
from kdpipe.schemas.interop import ImportSettings

FORMATS: dict[ImportFormat, str] = {
    "distillkit": "kdpipe.pipeline.interop.distillkit:Distillkit",
    "axolotl": "kdpipe.pipeline.interop.axolotl:Axolotl",
    "nemo": "kdpipe.pipeline.interop.nemo:Nemo",
    "topk": "kdpipe.pipeline.interop.topk_lists:PlainTopK",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatFacts:
    """What a format knows before its rows are read: how the tail is told, ids of a row where that is announced, whether
    it says which tokens are learnt, and how its rows lie."""

    tail: StatedTail
    tail_given: bool = False
    k: int | None = None
    has_loss_mask: bool
    alignment: str


class Format(Protocol):
    """One source format, opened on some files."""

    facts: FormatFacts

    def read(self, columns: Mapping[str, Any]) -> SourceRow:
        """A row of the source; a `BadRow` says what is wrong with it."""
        ...


def open_format(settings: ImportSettings, files: list[RowFile]) -> Format:
    """The format that is asked for, on these files."""
    module, _, name = FORMATS[settings.source_format].partition(":")
    return cast(Format, getattr(import_module(module), name)(settings, files))
