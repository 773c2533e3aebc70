"""Settings of a command: flags over --set over the environment over the file of --config.

In: what was typed. Out: one checked record.
"""

import os
from typing import TYPE_CHECKING, TypeVar

from kdpipe.cli.flags import ParsedFlags

if TYPE_CHECKING:
    from kdpipe.schemas.capture_settings import CaptureSettings
    from kdpipe.schemas.records import Record
    from kdpipe.schemas.settings import Said
    from kdpipe.schemas.train_settings import TrainSettings

R = TypeVar("R", bound="Record")


def stage_one(given: ParsedFlags, *, data: bool = True, out: bool = True) -> "CaptureSettings":
    """The settings of stage one, with contradictions and gaps refused."""
    from kdpipe.schemas import settings
    from kdpipe.schemas.capture_rules import require, settled
    from kdpipe.schemas.capture_settings import CaptureSettings

    result = settings.layered(CaptureSettings, settled(_said(CaptureSettings, given)))
    require(result, data=data, out=out)
    return result


def stage_two(given: ParsedFlags) -> "TrainSettings":
    """The settings of stage two, with contradictions and gaps refused."""
    from kdpipe.schemas import settings
    from kdpipe.schemas.train_rules import require, settled
    from kdpipe.schemas.train_settings import TrainSettings

    result = settings.layered(TrainSettings, settled(_said(TrainSettings, given)))
    require(result)
    return result


def _said(kind: type[R], given: ParsedFlags) -> "list[Said]":
    """What every layer said: default < file < KDPIPE_* environment < --set < flag."""
    from kdpipe.pipeline.config_file import read_file, read_value
    from kdpipe.schemas import settings
    from kdpipe.schemas.capture_settings import CaptureSettings
    from kdpipe.schemas.train_settings import TrainSettings

    said = settings.from_file(kind, read_file(given.config), str(given.config)) if given.config else []
    said += settings.from_environment(kind, os.environ, read_value, others=(CaptureSettings, TrainSettings))
    said += settings.from_sets(kind, given.sets, read_value)
    for flag, value in given.flags:
        said += settings.from_flag(kind, flag.name, flag.place, value)
    return said
