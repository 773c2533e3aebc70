"""The options of imports and exports: held to their bounds, and refused where a format would ignore them.

In: what was typed. Out: `ImportSettings` or `ExportSettings`, or a `ConfigError`.
"""

from typing import Any

from pydantic import ValidationError

from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.interop import ExportSettings, ImportSettings
from kdpipe.schemas.records import explain

WHO_TAKES = {"codec": "distillkit", "align": "axolotl and topk", "columns": "topk and axolotl's first form"}


def import_settings(**given: Any) -> ImportSettings:
    """The settings of an import."""
    try:
        return ImportSettings(**given)
    except ValidationError as error:
        raise ConfigError(explain(ImportSettings, error), hint="see `kdpipe cache import --help`") from None


def export_settings(**given: Any) -> ExportSettings:
    """The settings of an export."""
    try:
        return ExportSettings(**given)
    except ValidationError as error:
        raise ConfigError(explain(ExportSettings, error), hint="see `kdpipe cache export --help`") from None


def refuse_options(settings: ImportSettings, takes: tuple[str, ...]) -> None:
    """Refuse an option that the format has no use for."""
    for name, formats in WHO_TAKES.items():
        if getattr(settings, name) and name not in takes:
            raise ConfigError(
                f"--{name} says nothing of --from {settings.source_format}",
                hint=f"leave it out: it is for {formats}",
            )
