"""Options that only some formats take: one that would be ignored is refused.

In: the settings of an import, and which of those options its format takes. Out: nothing, or a `ConfigError`.
Before it: `schemas/foreign.py`. After it: the modules of the formats.
"""

from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.foreign import ImportSettings

WHO_TAKES = {"codec": "distillkit", "align": "axolotl and topk", "columns": "topk"}


def refuse_options(settings: ImportSettings, takes: tuple[str, ...]) -> None:
    """Refuse an option that the format has no use for."""
    for name, formats in WHO_TAKES.items():
        if getattr(settings, name) and name not in takes:
            raise ConfigError(
                f"--{name} says nothing of --from {settings.source_format}",
                hint=f"leave it out: it is for {formats}",
            )
