"""Import and export: caches from files of other tools, and files for other tools from caches.

In: the name of an import format. Out: its class, imported on first use. To add a format, write a module with such a
class and add a row to `FORMATS` and a name to `schemas.choices.ImportFormat`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, Literal, Protocol, cast, get_args

from kdpipe.pipeline.documents.row_files import RowFile
from kdpipe.pipeline.interop.validated_row import SourceRow
from kdpipe.schemas.choices import ImportFormat, StatedTail
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.interop import ImportSettings

FORMATS: dict[ImportFormat, str] = {
    "distillkit": "kdpipe.pipeline.interop.distillkit:Distillkit",
    "axolotl": "kdpipe.pipeline.interop.axolotl:Axolotl",
    "nemo": "kdpipe.pipeline.interop.nemo:Nemo",
    "topk": "kdpipe.pipeline.interop.topk_lists:PlainTopK",
}


# Options of `cache import` that not every format accepts.
FormatOption = Literal["codec", "align", "columns"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatInfo:
    """Properties of a source that are known before its rows are read.

    `tail_given`: rows contain their own tail mass, instead of `tail`. `k`: ids per row, if fixed by the format.
    """

    tail: StatedTail
    tail_given: bool = False
    k: int | None = None
    has_loss_mask: bool
    alignment: str


class Format(Protocol):
    """An import format, opened on the files of a source; `options` are those that it accepts."""

    options: ClassVar[tuple[FormatOption, ...]]
    info: FormatInfo

    def read(self, columns: Mapping[str, Any]) -> SourceRow:
        """Parse one row, or raise `BadRow`."""
        ...


def open_format(settings: ImportSettings, files: list[RowFile]) -> Format:
    """Open the format named by the settings, or refuse options that it does not accept."""
    module, _, name = FORMATS[settings.source_format].partition(":")
    kind = getattr(import_module(module), name)
    for option in get_args(FormatOption):
        if getattr(settings, option) and option not in kind.options:
            accepted = ", ".join(f"--{name}" for name in kind.options) or "no options of its own"
            raise ConfigError(
                f"--{option} does not apply to --from {settings.source_format}",
                hint=f"omit it: this format accepts {accepted}",
            )
    return cast(Format, kind(settings, files))
